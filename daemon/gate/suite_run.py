"""The suites of one evaluation under way: who is asked what, and what has been answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from daemon.gate.answers import Grade
from daemon.gate.fact_suites import (
    EARLIER_FACTS,
    SUPERSEDED_FACTS,
    earlier_facts,
    new_facts,
    superseded_facts,
)
from daemon.gate.lm_tasks import load_task
from daemon.gate.messages import EvaluationRequest, ServedModel, SuiteSource
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
from policies.gate.baselines import Model, models_asked
from policies.gate.blindness import NOT
from policies.gate.evidence import Control, SuiteEvidence, SuiteQuestions
from policies.gate.grading import GRADERS
from policies.gate.records import ItemResult, Role, SuiteItem, SuiteScore, answers_of
from policies.gate.stability import Stability


@dataclass(slots=True)
class SuiteRun:
    """One suite under way: what each model has answered, and what went wrong.

    `models` are asked in their order, the candidate last. `left_out` are items that are not asked,
    since facts have changed their answers. `configured` is the suite's hash before its grader was
    found, where it had to be; `grader_because` says how.
    """

    suite: Suite
    margin: float | None
    models: Mapping[Model, ServedModel]
    left_out: frozenset[str] = frozenset()
    complete: bool = False
    configured: str = ""
    grader_because: str = ""
    controls: dict[Model, Control] = field(default_factory=dict)
    results: dict[Model, dict[str, ItemResult]] = field(default_factory=dict)
    unanswered: dict[str, str] = field(default_factory=dict)
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
        return len(self.results.get("candidate", {}).keys() | self.unanswered.keys())

    def score(self, model: Model) -> SuiteScore | None:
        """The answers of one model; None where it is not asked at all."""
        if model not in self.models or self.suite.role is Role.DRIFT:
            return None
        return SuiteScore(
            suite=self.suite.name,
            role=self.suite.role,
            fingerprint=self.suite.fingerprint,
            results=tuple(self.results.get(model, {}).values()),
        )

    def evidence(self) -> SuiteEvidence:
        """The suite as the gate judges it."""
        return SuiteEvidence(
            questions=SuiteQuestions(
                suite=self.suite.name,
                role=self.suite.role,
                fingerprint=self.suite.fingerprint,
                items=self.items,
                margin=self.margin,
                complete=self.complete,
                left_out=len(self.left_out),
                grader=self.suite.grader,
                grader_because=self.grader_because,
            ),
            candidate=self.score("candidate"),
            base=self.score("base"),
            live=self.score("live"),
            stability=self.stability,
            controls=dict(self.controls),
            drift=self.drift,
            unanswered=dict(self.unanswered),
            broken=self.broken,
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
    grades |= {f"{NOT}{name}": _by_other_answer(name) for name in GRADERS}
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
            models=_models(request, suite.role),
            left_out=_left_out(suite, updates),
            complete=whole.get(suite.name, False) and suite.role is Role.RETENTION,
            configured=suite.fingerprint,
        )
        for suite, margin in suites
    ]
    return tuple(runs), grades


def _left_out(suite: Suite, updates: Updates) -> frozenset[str]:
    if suite.role is not Role.LOCALITY:
        return frozenset()
    changed = (
        item.id
        for item in suite.items
        if all(updates.change(item.prompt, said) for said in answers_of(item))
    )
    return frozenset(changed)


def _by_answer(name: str) -> Grade:
    return lambda item, output: any(GRADERS[name](output, said) for said in answers_of(item))


def _by_other_answer(name: str) -> Grade:
    """A model that says nothing has let go of nothing."""

    def grade(item: SuiteItem, output: str) -> bool:
        return bool(output.strip()) and not GRADERS[name](output, item.answer.removeprefix(NOT))

    return grade


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


def _models(request: EvaluationRequest, role: Role) -> Mapping[Model, ServedModel]:
    asked = models_asked(role, live=request.live is not None)
    return {part: model for part in asked if (model := request.served(part)) is not None}
