"""The suites of one evaluation under way: who is asked what, and what has been answered."""

from __future__ import annotations

from dataclasses import dataclass, field

from daemon.gate.fact_suites import (
    EARLIER_FACTS,
    NOT,
    SUPERSEDED_FACTS,
    earlier_facts,
    new_facts,
    superseded_facts,
)
from daemon.gate.lm_tasks import load_task
from daemon.gate.measuring import Grade, ServedModel
from daemon.gate.messages import EvaluationRequest, SuiteSource
from daemon.gate.suites import (
    BadSuite,
    PromptForm,
    Suite,
    load_suite,
    load_texts,
    refuse_trained,
    trained_questions,
)
from policies.facts.updates import Updates
from policies.gate.evidence import Stability, SuiteEvidence, SuiteQuestions
from policies.gate.grading import GRADERS
from policies.gate.records import ItemResult, Role, SuiteItem, SuiteScore


@dataclass(slots=True)
class SuiteRun:
    """One suite under way: what each target has answered, and what went wrong.

    `left_out` are items that are not asked, since facts have changed their answer.
    """

    suite: Suite
    margin: float | None
    targets: tuple[ServedModel, ...]
    left_out: frozenset[str] = frozenset()
    complete: bool = False
    results: dict[ServedModel, dict[str, ItemResult]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    broken: str = ""
    stability: Stability | None = None
    drift: float | None = None
    seconds: float = 0.0

    @property
    def items(self) -> tuple[SuiteItem, ...]:
        """The items that may be asked."""
        return tuple(item for item in self.suite.items if item.id not in self.left_out)

    @property
    def asked(self) -> int:
        """How many items the candidate has answered or could not; texts are scored at once."""
        if self.suite.role is Role.DRIFT:
            return len(self.suite.items)
        return len(self.results.get(self.targets[-1], {}).keys() | self.problems.keys())

    @property
    def silent(self) -> bool:
        """Whether some target has said nothing at all: more items would tell no more."""
        return any(
            answers and not any(result.output.strip() for result in answers.values())
            for answers in self.results.values()
        )

    def score(self, target: ServedModel | None) -> SuiteScore | None:
        """The answers of one target; None where it is not asked at all."""
        if target not in self.targets or self.suite.role is Role.DRIFT:
            return None
        return SuiteScore(
            suite=self.suite.name,
            role=self.suite.role,
            fingerprint=self.suite.fingerprint,
            results=tuple(self.results.get(target, {}).values()),
        )

    def evidence(self, request: EvaluationRequest) -> SuiteEvidence:
        """The suite as the gate judges it."""
        return SuiteEvidence(
            questions=SuiteQuestions(
                suite=self.suite.name,
                role=self.suite.role,
                fingerprint=self.suite.fingerprint,
                items=self.items,
                margin=self.margin,
                complete=self.complete,
            ),
            candidate=self.score(request.candidate),
            reference=self.score(request.reference),
            live=self.score(request.live),
            stability=self.stability,
            drift=self.drift,
        )


def begin(request: EvaluationRequest) -> tuple[tuple[SuiteRun, ...], dict[str, Grade]]:
    """New, earlier and superseded facts, then the configured suites, and every grader by name.

    A suite of which every item is left out is among them; it has nothing to ask.
    Raises `suites.BadSuite`.
    """
    tokens, grader, chat = request.facts_max_tokens, request.facts_grader, request.chat
    facts = (
        new_facts(
            request.facts,
            grader=grader,
            chat=chat,
            max_tokens=tokens,
            paraphrases=request.paraphrases,
        ),
        earlier_facts(request.earlier, grader=grader, chat=chat, max_tokens=tokens),
        superseded_facts(request.superseded, grader=grader, chat=chat, max_tokens=tokens),
    )
    whole = {
        EARLIER_FACTS: request.earlier_complete,
        SUPERSEDED_FACTS: request.superseded_complete,
    }
    suites: list[tuple[Suite, float | None]] = [(suite, None) for suite in facts if suite.items]
    grades: dict[str, Grade] = {name: _by_answer(name) for name in GRADERS}
    grades[f"{NOT}{grader}"] = _by_other_answer(grader)
    trained = trained_questions(request.trained_on)
    updates = Updates((*request.standing, *request.facts))
    for source in request.suites:
        suite, grade = open_suite(source, chat=chat)
        refuse_trained(suite, trained)
        suites.append((suite, source.margin))
        grades |= {suite.grader: grade} if grade else {}
    runs = [
        SuiteRun(
            suite=suite,
            margin=margin,
            targets=compared(request, suite.role),
            left_out=_left_out(suite, updates),
            complete=whole.get(suite.name, False) and suite.role is Role.RETENTION,
        )
        for suite, margin in suites
    ]
    return tuple(runs), grades


def _left_out(suite: Suite, updates: Updates) -> frozenset[str]:
    if suite.role is not Role.LOCALITY:
        return frozenset()
    changed = (item.id for item in suite.items if updates.change(item.prompt, item.answer))
    return frozenset(changed)


def _by_answer(name: str) -> Grade:
    return lambda item, output: GRADERS[name](output, item.answer)


def _by_other_answer(name: str) -> Grade:
    return lambda item, output: not GRADERS[name](output, item.answer.removeprefix(NOT))


def open_suite(source: SuiteSource, *, chat: bool) -> tuple[Suite, Grade | None]:
    """A configured suite, with its own grader where a task brings one; raises `suites.BadSuite`."""
    if source.task is not None:
        return load_task(
            source.task,
            name=source.name,
            role=source.role,
            form=PromptForm.CHAT if source.form == "chat" else PromptForm.PLAIN,
            max_tokens=source.max_tokens,
            filter_name=source.filter,
            folder=source.path,
        )
    if source.path is None:
        raise BadSuite(f"suite {source.name!r}: has neither path nor task")
    if source.role is Role.DRIFT:
        return load_texts(source.path, name=source.name), None
    suite = load_suite(
        source.path,
        name=source.name,
        role=source.role,
        grader=source.grader,
        form=source.form,
        max_tokens=source.max_tokens,
        chat=chat,
    )
    return suite, None


def compared(request: EvaluationRequest, role: Role) -> tuple[ServedModel, ...]:
    """Who is asked, in this order, the candidate last.

    The reference never learnt the earlier facts, so what is live is asked instead. The new facts
    are asked of what answers now, too: not for the verdict, but to show what has changed.
    """
    live = (request.live,) if request.live else ()
    if role is Role.RETENTION:
        return (*live, request.candidate)
    if role is Role.FACTS:
        return (*(live or (request.reference,)), request.candidate)
    if role is Role.REASONING:
        return (request.reference, *live, request.candidate)
    return (request.reference, request.candidate)
