"""Graded answers of one model to some items of one suite; what was answered is not asked again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from daemon.gate.answer_store import AnswerStore
from daemon.gate.asking import Asker, Query
from daemon.gate.judge_model import Judged, JudgeModel
from daemon.gate.messages import ServedModel
from daemon.gate.suites import Suite
from policies.errors import PaloradError
from policies.gate.blindness import NOT
from policies.gate.grading import JUDGE
from policies.gate.records import ItemResult, SuiteItem, answers_of
from policies.records import content_id

Grade = Callable[[SuiteItem, str], bool]
SWAPS_JUDGED: Final = 16
NO_JUDGE: Final = "no judge model is set; set gate.judge.url and gate.judge.model"


class GraderFailed(PaloradError, RuntimeError):
    """A grader that raised instead of saying right or wrong."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Graded answers by item, and why the other items asked have none."""

    results: Mapping[str, ItemResult]
    problems: Mapping[str, str]


@dataclass(slots=True)
class AnswerSource:
    """Asks, grades and stores through one server.

    `engine` names what decodes (its kind and version), because the same weights need not give
    the same tokens elsewhere. It is part of every stored answer's address. `judge` grades suites
    whose grader is a judge model.
    """

    asker: Asker
    store: AnswerStore
    grade: Mapping[str, Grade]
    engine: str
    judge: JudgeModel | None = None
    _known: dict[tuple[str, str], dict[str, ItemResult]] = field(default_factory=dict)

    async def answers(
        self, model: ServedModel, suite: Suite, items: Sequence[int], *, trial: int = 0
    ) -> Answers:
        """What `model` answers to the suite's items with these numbers.

        `trial` 1, 2, … are independent repetitions, kept apart from the first. Raises
        `GraderFailed`, `asking.ModelNotServed` and `errors.ServerUnreachable`.
        """
        repeated = [f"trial {trial}"] if trial else []
        address = content_id(suite.questions, self.engine, *repeated)
        known = self._kept(model, address)
        missing = [n for n in items if suite.items[n].id not in known]
        queries = [
            Query(suite.items[n].id, suite.items[n].prompt, suite.form_of(n)) for n in missing
        ]
        replies = await self.asker.ask(model.name, queries, max_tokens=suite.max_tokens)
        fresh = [
            ItemResult(id=reply.id, correct=False, output=reply.text, cut=reply.cut)
            for reply in replies
            if reply.text is not None
        ]
        self.store.append(model.sha256, address, fresh)
        known.update((result.id, result) for result in fresh)
        unanswered = {reply.id: reply.problem for reply in replies if reply.text is None}
        answered = [(item, known[item.id]) for n in items if (item := suite.items[n]).id in known]
        results, ungraded = await self._graded(suite, answered)
        return Answers(results, unanswered | ungraded)

    async def swapped(self, suite: Suite, pairs: Sequence[tuple[SuiteItem, str]]) -> list[bool]:
        """Whether the suite's grader takes each text for right, though it answers another question.

        A judge model is asked about `SWAPS_JUDGED` of them; what it does not grade is left out.
        Raises `GraderFailed`.
        """
        if not _by_judge(suite):
            return [self._passes(suite, item, text) for item, text in pairs]
        if self.judge is None:
            return []
        asked = [
            Judged(item.id, item.prompt, answers_of(item), text)
            for item, text in pairs[:SWAPS_JUDGED]
        ]
        return list((await self.judge.right(asked)).right.values())

    def _passes(self, suite: Suite, item: SuiteItem, text: str) -> bool:
        try:
            return bool(self.grade[suite.grader](item, text))
        except Exception as error:
            raise GraderFailed(
                f"the grader {suite.grader!r} failed on item {item.id}: {error!r}"
            ) from error

    def _kept(self, model: ServedModel, address: str) -> dict[str, ItemResult]:
        """The answers kept, as text: whoever reads them grades them."""
        key = (model.sha256, address)
        if key not in self._known:
            self._known[key] = dict(self.store.read(model.sha256, address))
        return self._known[key]

    async def _graded(
        self, suite: Suite, answered: Sequence[tuple[SuiteItem, ItemResult]]
    ) -> tuple[dict[str, ItemResult], dict[str, str]]:
        """Graded each time they are read: a corrected grader judges old answers, too."""
        if not _by_judge(suite):
            return {
                item.id: kept.model_copy(update={"correct": self._passes(suite, item, kept.output)})
                for item, kept in answered
            }, {}
        if self.judge is None:
            return {}, {item.id: NO_JUDGE for item, _ in answered}
        negated = suite.grader.startswith(NOT)
        silent = {item.id: kept for item, kept in answered if not kept.output.strip()}
        asked = [
            _judged(item, kept, negated=negated) for item, kept in answered if item.id not in silent
        ]
        says = await self.judge.right(asked)
        graded = {
            item.id: kept.model_copy(update={"correct": says.right[item.id] != negated})
            for item, kept in answered
            if item.id in says.right
        }
        return silent | graded, dict(says.problems)


def _by_judge(suite: Suite) -> bool:
    return suite.grader.removeprefix(NOT) == JUDGE


def _judged(item: SuiteItem, kept: ItemResult, *, negated: bool) -> Judged:
    accepted = answers_of(item)
    if negated:
        accepted = tuple(answer.removeprefix(NOT) for answer in accepted)
    return Judged(item.id, item.prompt, accepted, kept.output)
