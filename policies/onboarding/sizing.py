"""What a suite of so many questions can rule out, and how small a loss it can show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from policies.gate.blindness import blind, mentioned, shuffled
from policies.gate.evidence import Control, SuiteEvidence, SuiteQuestions
from policies.gate.limits import GateLimits
from policies.gate.power import detectable_loss
from policies.gate.records import ItemResult, Role, SuiteItem, SuiteScore, answers_of
from policies.gate.sequential import Design, items_to_pass
from policies.records import Record

DISCORDANCE: Final = 0.05
"""The share of items that two models answer differently of which neither is worse, as assumed in
docs/gate.md until a candidate has been measured."""
MARGINS: Final = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2)
TESTS: Final = 9
"""Tests that share beta once a revision is live: reasoning against base and live, known facts
against base, earlier facts against live, each as a whole and by family, and earlier facts against a
floor."""
HEADROOM: Final = 1.7
"""So many times the expected items let four of five harmless candidates pass."""

Grade = Callable[[str, str], bool]


class SuiteSight(Record):
    """What the base answers to a suite, and what the gate can see there.

    `right` is the base's accuracy, `margin` the smallest drop that so many items can rule out,
    `sees` the smallest loss that fails with 80 % power. `blind` says why no loss would show.
    """

    items: int
    right: float
    margin: float
    enough: bool
    sees: float | None
    blind: str = ""

    @property
    def usable(self) -> bool:
        """Whether a candidate that lost nothing could pass, and one that lost much could not."""
        return self.enough and not self.blind


def fitting_margin(items: int, usual: float, limits: GateLimits) -> tuple[float, bool]:
    """The smallest margin from `usual` on with which four of five harmless candidates pass on so
    many items, and whether there is one."""
    for margin in (usual, *(m for m in MARGINS if m > usual)):
        design = Design(margin, limits.alpha, limits.beta / TESTS)
        if HEADROOM * items_to_pass(design, DISCORDANCE) <= items:
            return margin, True
    return MARGINS[-1], False


def sight(
    role: Role,
    items: Sequence[SuiteItem],
    results: Sequence[ItemResult],
    limits: GateLimits,
    grader: str,
    grade: Grade,
) -> SuiteSight:
    """What the base's graded answers to a whole suite say of it; `grade(output, expected)` is the
    grader. Both are in one order."""
    margin, enough = fitting_margin(len(items), limits.margin(role), limits)
    design = Design(margin, limits.alpha, limits.beta / TESTS)
    sees = detectable_loss(design, len(items), DISCORDANCE) if items else None
    if not items:
        return SuiteSight(items=0, right=0.0, margin=margin, enough=False, sees=None)
    suite = SuiteEvidence(
        questions=SuiteQuestions(
            suite=str(role), role=role, fingerprint="", items=tuple(items), grader=grader
        ),
        base=SuiteScore(suite=str(role), role=role, fingerprint="", results=tuple(results)),
        controls={"base": _control(items, results, grader, grade)},
    )
    why = blind(suite, ("base",), margin=margin, floor=None, sees=sees)
    return SuiteSight(
        items=len(items),
        right=sum(one.correct for one in results) / len(results),
        margin=margin,
        enough=enough,
        sees=None if why else sees,
        blind=why,
    )


def _control(
    items: Sequence[SuiteItem], results: Sequence[ItemResult], grader: str, grade: Grade
) -> Control:
    """How much of what the grader takes for right would pass by chance."""
    by_id = {item.id: item for item in items}
    swapped = [
        any(grade(output, said) for said in answers_of(by_id[name]))
        for name, output in shuffled(results)
    ]
    return Control(
        items=len(swapped),
        chance=sum(swapped) / len(swapped) if swapped else 0.0,
        mentioned=mentioned(by_id, results, grader),
    )
