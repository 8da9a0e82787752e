"""What the alias can be asked: what the target answered right when the gate asked it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Final

from daemon.config.gate import SuiteSettings
from daemon.config.settings import Settings
from daemon.gate import fact_suites
from daemon.gate.asking import Query
from daemon.gate.messages import SuiteSource
from daemon.gate.suite_run import open_suite
from daemon.gate.suites import BadSuite, PromptForm, Suite, has_chat_template
from daemon.ledger.ledger import Ledger
from policies.gate.grading import GRADERS
from policies.gate.records import Role, SuiteScore, SuiteVerdict, answers_of
from policies.records import Fact, Record, Revision

ASKED_FACTS: Final = (fact_suites.NEW_FACTS, fact_suites.EARLIER_FACTS)


class Question(Record):
    """One question, who grades the answer, and how long it may be (in tokens)."""

    id: str
    prompt: str
    answers: tuple[str, ...]
    grader: str
    max_tokens: int
    form: PromptForm

    @property
    def query(self) -> Query:
        """As it is asked."""
        return Query(self.id, self.prompt, self.form)

    def is_right(self, text: str) -> bool:
        """Whether the grader takes an answer for right."""
        return any(GRADERS[self.grader](text, said) for said in self.answers)


class Pool(Record):
    """All that may be asked of one revision."""

    facts: tuple[Question, ...] = ()
    reasoning: tuple[Question, ...] = ()

    def draw(self, facts: int, reasoning: int, rng: random.Random) -> Pool:
        """A random sample of each kind, of at most these sizes."""
        return Pool(
            facts=tuple(rng.sample(self.facts, min(facts, len(self.facts)))),
            reasoning=tuple(rng.sample(self.reasoning, min(reasoning, len(self.reasoning)))),
        )


def pool_of(ledger: Ledger, settings: Settings, target: Revision) -> Pool:
    """What the gate saw `target` answer right and what still counts; empty for the base.

    Reads a scorecard and the suites' files: not for the loop.
    """
    if target.plan_id is None:
        return Pool()
    verdict = ledger.steps.verdict(target.plan_id)
    cards = ledger.steps.scorecards(target.plan_id)
    card = next((card for card in cards if card.model == target.served_name), None)
    if verdict is None or card is None:
        return Pool()
    judged = {suite.suite: suite for suite in verdict.suites if suite.grader in GRADERS}
    right = {score.suite: _right(score) for score in card.suites if score.suite in judged}
    chat = has_chat_template(settings.model.path)
    return Pool(
        facts=tuple(_facts(ledger, settings, judged, right, chat=chat)),
        reasoning=tuple(_reasoning(settings, judged, right, chat=chat)),
    )


def _right(score: SuiteScore) -> frozenset[str]:
    return frozenset(result.id for result in score.results if result.correct)


def _facts(
    ledger: Ledger,
    settings: Settings,
    judged: Mapping[str, SuiteVerdict],
    right: Mapping[str, frozenset[str]],
    *,
    chat: bool,
) -> Iterator[Question]:
    """Valid facts, each in the paraphrase that was answered right."""
    for name in ASKED_FACTS:
        items = right.get(name, frozenset())
        facts = ledger.facts.find(ids=sorted({fact_suites.fact_id(item) for item in items}))
        for fact in facts:
            if ledger.facts.state(fact.id)["validity"] != "valid":
                continue
            for number, prompt in enumerate(_asked(fact)):
                if fact_suites.item_id(fact.id, number) in items:
                    yield Question(
                        id=fact_suites.item_id(fact.id, number),
                        prompt=prompt,
                        answers=(fact.answer,),
                        grader=judged[name].grader,
                        max_tokens=settings.gate.facts_max_tokens,
                        form=PromptForm.CHAT if chat else PromptForm.PLAIN,
                    )
                    break


def _asked(fact: Fact) -> tuple[str, ...]:
    return fact.eval_prompts or (fact.prompt,)


def _reasoning(
    settings: Settings,
    judged: Mapping[str, SuiteVerdict],
    right: Mapping[str, frozenset[str]],
    *,
    chat: bool,
) -> Iterator[Question]:
    for source in settings.gate.suites:
        if source.role is not Role.REASONING or source.task or source.name not in judged:
            continue
        suite = _opened(source, judged[source.name].grader, chat=chat)
        for number, item in enumerate(suite.items if suite else ()):
            if suite is not None and item.id in right.get(source.name, frozenset()):
                yield Question(
                    id=item.id,
                    prompt=item.prompt,
                    answers=answers_of(item),
                    grader=suite.grader,
                    max_tokens=suite.max_tokens,
                    form=suite.form_of(number),
                )


def _opened(source: SuiteSettings, grader: str, *, chat: bool) -> Suite | None:
    """A suite with the grader that the verdict used; None if its file is no longer usable."""
    chosen = SuiteSource(**{**source.model_dump(), "grader": grader})
    try:
        return open_suite(chosen, chat=chat)[0]
    except BadSuite:
        return None
