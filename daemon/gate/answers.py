"""Graded answers of one model to some items of one suite; what was answered is not asked again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from daemon.gate.answer_store import AnswerStore
from daemon.gate.asking import Asker, Query
from daemon.gate.messages import ServedModel
from daemon.gate.suites import Suite
from policies.errors import PaloradError
from policies.gate.records import ItemResult, SuiteItem
from policies.records import content_id

Grade = Callable[[SuiteItem, str], bool]


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
    the same tokens elsewhere. It is part of every stored answer's address.
    """

    asker: Asker
    store: AnswerStore
    grade: Mapping[str, Grade]
    engine: str
    _known: dict[tuple[str, str], dict[str, ItemResult]] = field(default_factory=dict)

    async def answers(
        self, model: ServedModel, suite: Suite, items: Sequence[int], *, trial: int = 0
    ) -> Answers:
        """What `model` answers to the suite's items with these numbers.

        `trial` 1, 2, … are independent repetitions, kept apart from the first. Raises
        `GraderFailed`, `asking.ModelNotServed` and `errors.ServerUnreachable`.
        """
        address = content_id(suite.fingerprint, self.engine, *([f"trial {trial}"] if trial else []))
        known = self._stored(model, suite, address)
        missing = [n for n in items if suite.items[n].id not in known]
        queries = [
            Query(suite.items[n].id, suite.items[n].prompt, suite.form_of(n)) for n in missing
        ]
        replies = await self.asker.ask(model.name, queries, max_tokens=suite.max_tokens)
        fresh = [
            self._graded(suite, suite.items[n], reply.text)
            for n, reply in zip(missing, replies, strict=True)
            if reply.text is not None
        ]
        self.store.append(model.sha256, address, fresh)
        known.update((result.id, result) for result in fresh)
        return Answers(
            {name: known[name] for n in items if (name := suite.items[n].id) in known},
            {reply.id: reply.problem for reply in replies if reply.text is None},
        )

    def _stored(self, model: ServedModel, suite: Suite, address: str) -> dict[str, ItemResult]:
        """The answers kept, graded again: a corrected grader judges old answers, too."""
        key = (model.sha256, address)
        if key not in self._known:
            kept = self.store.read(model.sha256, address)
            self._known[key] = {
                item.id: self._graded(suite, item, kept[item.id].output)
                for item in suite.items
                if item.id in kept
            }
        return self._known[key]

    def _graded(self, suite: Suite, item: SuiteItem, text: str) -> ItemResult:
        try:
            correct = self.grade[suite.grader](item, text)
        except Exception as error:
            raise GraderFailed(
                f"the grader {suite.grader!r} failed on item {item.id}: {error!r}"
            ) from error
        return ItemResult(id=item.id, correct=bool(correct), output=text)
