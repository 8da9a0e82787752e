"""Which text may serve what: disjoint by construction, from the text's own hash."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Final


class Split(StrEnum):
    """What a text is for. No two parts of the work ever share one."""

    TRAIN = "train"
    PROBE = "probe"
    GATE = "gate"
    REPORT = "report"
    SELECTION = "selection"
    REPLAY = "replay"


_SHARES: Final = (
    (Split.TRAIN, 60),
    (Split.PROBE, 8),
    (Split.GATE, 10),
    (Split.REPORT, 8),
    (Split.SELECTION, 6),
    (Split.REPLAY, 8),
)


# Facts that the model knows: what may be replayed, and what shows untouched knowledge.
_KNOWLEDGE: Final = ((Split.REPLAY, 20), (Split.GATE, 55), (Split.REPORT, 25))


def split_of(key: str) -> Split:
    """The split of a problem, by a hash of what identifies it."""
    return _place(f"problem:{key}", _SHARES)


def split_of_subject(subject: str) -> Split:
    """The split of every known fact about `subject`: replayed, or asked to judge."""
    return _place(f"subject:{subject.casefold()}", _KNOWLEDGE)


def _place(key: str, shares: tuple[tuple[Split, int], ...]) -> Split:
    place = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % 100
    for split, share in shares:
        if place < share:
            return split
        place -= share
    raise AssertionError("the shares do not add up to 100")
