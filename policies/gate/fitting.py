"""Which grader fits how the base answers: found on a sample of its answers, then kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from policies.gate.figures import percent
from policies.gate.grading import AUTO, GRADERS, Grader, normalise
from policies.gate.records import ItemResult, Role, SuiteItem, answers_of
from policies.gate.sampling import draw_order
from policies.records import Record

SAMPLE: Final = 100
# A strict grader that misses no more than this share of what a lenient one accepts is preferred.
_TOLERATED: Final = 0.05
# An answer with so many words more than the expected one is a sentence.
_WORDS: Final = 3


class GraderChoice(Record):
    """The grader that was found to fit a suite, and what was seen."""

    grader: str
    because: str


def fitting_sample(items: tuple[SuiteItem, ...], fingerprint: str) -> tuple[SuiteItem, ...]:
    """At most `SAMPLE` items on which the choice rests; they depend on the suite alone."""
    order = draw_order(items, f"{AUTO} {fingerprint}")
    return tuple(item for cluster in order for item in cluster)[:SAMPLE]


def choose_grader(
    role: Role, items: Sequence[SuiteItem], answers: Mapping[str, ItemResult]
) -> GraderChoice:
    """The strict grader (`normalised`) unless the base's answers to these items need a lenient one.

    The lenient one is `final` for reasoning, whose solutions name many numbers on their way, and
    `contains` for all else. It is chosen where it accepts clearly more, or where neither accepts
    anything and most answers are sentences. New facts are not known yet, so that there only the
    length of the answers counts.
    """
    lenient = "final" if role is Role.REASONING else "contains"
    pairs = [(item, answers[item.id].output) for item in items if item.id in answers]
    n = len(pairs)
    strict_right = _right(GRADERS["normalised"], pairs)
    lenient_right = _right(GRADERS[lenient], pairs)
    sentences = sum(_sentence(item, output) for item, output in pairs)
    if lenient_right - strict_right > max(1.0, _TOLERATED * n):
        chosen = lenient
    elif strict_right > _TOLERATED * n or 2 * sentences <= n:
        chosen = "normalised"
    else:
        chosen = lenient
    return GraderChoice(
        grader=chosen,
        because=(
            f"of {n} answers of base, {lenient_right} right by {lenient!r}, {strict_right} by "
            f"'normalised'; {percent(sentences / n if n else 0)} are sentences"
        ),
    )


def _right(grader: Grader, pairs: Sequence[tuple[SuiteItem, str]]) -> int:
    return sum(any(grader(output, said) for said in answers_of(item)) for item, output in pairs)


def _sentence(item: SuiteItem, output: str) -> bool:
    """Whether the first line has clearly more words than the answer."""
    line = next((line for line in output.splitlines() if line.strip()), "")
    expected = max(len(normalise(said).split()) for said in answers_of(item))
    return len(normalise(line).split()) > expected + _WORDS
