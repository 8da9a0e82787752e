"""Questions shared out over replay, suites and report, so that no two parts ask the same."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Final, NamedTuple, TypeVar

from policies.text import folded

T = TypeVar("T")

ALIKE: Final = 0.6
"""Two questions with one answer and this share of their words in common are near-duplicates."""
_WORD: Final = re.compile(r"[^\W_]+")
_FUNCTION: Final = frozenset(
    _WORD.findall("a an at by do does for in is of on please the to was were")
)


class SplitKey(NamedTuple):
    """What decides about a question's part: its family, its text and its answer."""

    family: str
    prompt: str
    answer: str


def share_out(
    rows: Sequence[T],
    shares: Mapping[str, float],
    describe: Callable[[T], SplitKey],
    random: Random,
) -> dict[str, list[T]]:
    """The rows in parts of these shares, at random; every family in the same shares in each part.

    Near-duplicates (see `near_duplicates`) stay in one part.
    """
    parts: dict[str, list[T]] = {name: [] for name in shares}
    asked = [describe(row) for row in rows]
    by_family: dict[str, list[list[int]]] = defaultdict(list)
    for group in near_duplicates(asked):
        by_family[asked[group[0]].family].append(group)
    total = 0
    for groups in by_family.values():
        random.shuffle(groups)
        filled: Counter[str] = Counter()
        placed = 0
        for group in groups:
            placed, total = placed + len(group), total + len(group)

            def lacks(name: str, placed: int = placed, total: int = total) -> tuple[float, float]:
                here = shares[name] * placed - filled[name]  # noqa: B023 - called in this turn only
                return here, shares[name] * total - len(parts[name])

            name = max(shares, key=lacks)
            filled[name] += len(group)
            parts[name] += [rows[n] for n in group]
    return parts


def near_duplicates(asked: Sequence[SplitKey]) -> list[list[int]]:
    """The numbers of the questions in groups; every question is in one, most are alone.

    Two belong together where they have the same words, in any order, or one answer and `ALIKE` of
    their words in common (Jaccard's index), function words apart.
    """
    words = [_content(one.prompt) for one in asked]
    root = list(range(len(asked)))

    def find(n: int) -> int:
        while root[n] != n:
            root[n] = root[root[n]]
            n = root[n]
        return n

    by_words: dict[frozenset[str], int] = {}
    by_answer: dict[str, list[int]] = defaultdict(list)
    for n, one in enumerate(asked):
        root[find(n)] = find(by_words.setdefault(words[n], n))
        for other in by_answer[folded(one.answer)]:
            if _alike(words[n], words[other]):
                root[find(n)] = find(other)
        by_answer[folded(one.answer)].append(n)
    groups: dict[int, list[int]] = defaultdict(list)
    for n in range(len(asked)):
        groups[find(n)].append(n)
    return list(groups.values())


def _content(prompt: str) -> frozenset[str]:
    words = frozenset(_WORD.findall(prompt.casefold()))
    return words - _FUNCTION or words or frozenset({prompt})


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) >= ALIKE * len(one | other)
