"""A suite that cannot fail proves nothing: whether one could have shown a loss at all.

What a baseline has right, less what would pass by chance, is all that a candidate can lose. A suite
is blind where that is less than twice the margin, so that more than half of it could go unnoticed,
or less than the smallest loss that so many items can show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from policies.gate.baselines import Model
from policies.gate.evidence import Control, SuiteEvidence, by_item
from policies.gate.figures import limit, percent, pp
from policies.gate.mentions import contains
from policies.gate.records import ItemResult, Role, SuiteItem, answers_of

LEAST_LOSABLE: Final = 2.0
CONTROLLED: Final = 256
NOT: Final = "not "
# Graders that read the end of an answer, and those that take nothing but the answer.
_READ_THE_END: Final = frozenset({"exact", "number", "final", "regex", "choice"})
_STRICT: Final = frozenset({"exact", "normalised"})
_ALL_CUT: Final = 0.9
_MISREAD: Final = 0.5
# With fewer answers than this a share says too little to give a suite up for.
_ENOUGH: Final = 100


def shuffled(results: Sequence[ItemResult]) -> tuple[tuple[str, str], ...]:
    """Pairs (item, output of another item), at most `CONTROLLED`; none for fewer than two."""
    used = results[:CONTROLLED]
    half = len(used) // 2
    if not half:
        return ()
    return tuple((one.id, used[(n + half) % len(used)].output) for n, one in enumerate(used))


def mentioned(items: Mapping[str, SuiteItem], results: Sequence[ItemResult], grader: str) -> int:
    """How many answers that a strict grader refuses mention the expected one, of `CONTROLLED`."""
    if grader not in _STRICT:
        return 0
    return sum(
        not one.correct and any(_mentions(one.output, said) for said in answers_of(items[one.id]))
        for one in results[:CONTROLLED]
    )


def _mentions(output: str, expected: str) -> bool:
    return any(c.isalnum() for c in expected) and contains(output, expected)


def blind(
    suite: SuiteEvidence,
    baselines: Sequence[Model],
    *,
    margin: float,
    floor: float | None,
    sees: float | None,
) -> str:
    """Why no baseline of the suite lets a loss of the margin be seen; empty where one does.

    `sees` is the smallest loss that the suite can show, `floor` a share that must be kept whatever
    the baselines do. Answers that gave way are what live still says until the first candidate that
    has learnt of it: that none can be lost then is as it should be, and the new facts are judged.
    """
    if suite.questions.grader.startswith(NOT):
        return ""
    reasons = [_blind_to(suite, model, margin, sees) for model in baselines]
    if floor is not None and suite.questions.role is Role.RETENTION:
        reasons.append(_blind_floor(suite, floor, margin))
    if not reasons or not all(reasons):
        return ""
    return reasons[0]


def hopeless(suite: SuiteEvidence, baselines: Sequence[Model]) -> bool:
    """Whether every baseline has answered enough items and none of them right."""
    scores = [by_item(suite.score(model)).values() for model in baselines]
    return bool(scores) and all(
        len(answers) >= _ENOUGH and not any(one.correct for one in answers) for answers in scores
    )


def _blind_to(suite: SuiteEvidence, model: Model, margin: float, sees: float | None) -> str:
    answers = list(by_item(suite.score(model)).values())
    grader, n = suite.questions.grader, len(answers)
    control = suite.controls.get(model, Control())
    right = sum(one.correct for one in answers) / n
    cut = sum(one.cut for one in answers) / n
    chance = control.chance
    refused = control.mentioned / control.items if control.items else 0.0
    if grader in _READ_THE_END and cut >= _ALL_CUT:
        return (
            f"{percent(cut)} of {model}'s answers were cut off before their end; raise max_tokens "
            f"or ask for shorter answers"
        )
    if refused and right < _MISREAD * (right + refused):
        return (
            f"{percent(refused)} of {model}'s answers contain the expected one and count as wrong, "
            f'{percent(right)} as right, by {grader!r}; set its grader to "contains" or "auto"'
        )
    if suite.questions.complete:
        return "" if right > 0 else f"{model} has none of the {n} right, so none can be lost"
    losable = max(0.0, right - chance)
    if losable < LEAST_LOSABLE * margin:
        return _nothing_to_lose(model, right, chance, margin, cut)
    if sees is None or sees > losable:
        return (
            f"too few items can differ: {model} has {percent(right)} of {n} right, and not even "
            "the loss of them all would show with 80 % power; add items"
        )
    return ""


def _nothing_to_lose(model: Model, right: float, chance: float, margin: float, cut: float) -> str:
    said = f"{model} has {percent(right)} right"
    if chance > 0:
        said += f", and {percent(chance)} with its answers to other questions"
    said += (
        f": too little to lose for a margin of {pp(margin)}, at least "
        f"{limit(LEAST_LOSABLE * margin)} is needed; "
    )
    if chance > right / 2:
        return said + "use items whose answers differ, or a stricter grader"
    if cut > 0.5:
        return said + f"{percent(cut)} of the answers were cut off: raise max_tokens"
    return said + "use items that the base can do, or a grader that fits its answers"


def _blind_floor(suite: SuiteEvidence, floor: float, margin: float) -> str:
    if suite.questions.complete:
        return "" if len(suite.questions.items) > 1 else "there is one fact, and one may be lost"
    chances = [control.chance for control in suite.controls.values()]
    chance = max(chances, default=0.0)
    if floor - chance < LEAST_LOSABLE * margin:
        return f"{percent(chance)} of answers to other questions pass, too; use a stricter grader"
    return ""
