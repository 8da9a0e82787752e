"""Whether a model says the same twice, and what it is that it says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from policies.errors import Ungradable
from policies.gate.mentions import contains

LONGEST: Final = 8
"""Words that a shared answer may have; more is a text, not an answer."""
_COVERED: Final = 0.5
_SENTENCE: Final = re.compile(r"(.+?[.!?])(?:\s|$)", re.DOTALL)
_WORD: Final = re.compile(r"[^\W_]+(?:[.,'’:-][^\W_]+)*")
_REFUSED: Final = re.compile(
    r"\b(?:i (?:do not|don['’]?t|can['’]?t|cannot|am not|am sorry|am unable)|i['’]m (?:not|sorry)|"
    r"as an ai|unable to (?:answer|provide)|no information)\b",
    re.IGNORECASE,
)
_FUNCTION: Final = frozenset(
    re.findall(
        r"\w+",
        """
    a an and are as at be been but by called commonly considered for from has have in into is it
    its known located named of on one or that the there these they this those to was were which who
    with you
    """,
    )
)


@dataclass(frozen=True, slots=True)
class _Word:
    text: str
    start: int
    end: int


def first_sentence(text: str) -> str:
    """The first sentence, or all where none ends."""
    text = text.strip()
    found = _SENTENCE.match(text)
    return found[1] if found else text


def ends(text: str) -> bool:
    """Whether a sentence ends in the text, so that its first one is whole."""
    return _SENTENCE.match(text.strip()) is not None


def shared_answer(prompt: str, one: str, other: str) -> str | None:
    """What two answers to one question both say, in the words of `one`; None where they differ.

    It is the longest run of words that both first sentences have and the question has not, of at
    most `LONGEST` words. It must be more than half of what is new in the shorter of the two, apart
    from function words: two sentences that share no more than "a large" do not agree. A refusal is
    no answer.
    """
    first, second = first_sentence(one), first_sentence(other)
    if _REFUSED.search(first) or _REFUSED.search(second):
        return None
    asked = {word.text for word in _words(prompt)}
    mine, theirs = _words(first), _words(second)
    run = _trimmed(_longest_run(mine, theirs, asked))
    if not 0 < len(run) <= LONGEST:
        return None
    new = min(len(_telling(mine, asked)), len(_telling(theirs, asked)))
    if len(_telling(run, asked)) <= _COVERED * new:
        return None
    said = first[run[0].start : run[-1].end]
    try:
        agreed = contains(first, said) and contains(second, said)
    except Ungradable:
        return None
    return said if agreed else None


def _words(text: str) -> list[_Word]:
    return [_Word(m[0].casefold(), m.start(), m.end()) for m in _WORD.finditer(text)]


def _telling(words: Sequence[_Word], asked: set[str]) -> list[_Word]:
    return [word for word in words if word.text not in asked and word.text not in _FUNCTION]


def _trimmed(run: Sequence[_Word]) -> list[_Word]:
    words = list(run)
    while words and words[0].text in _FUNCTION:
        words.pop(0)
    while words and words[-1].text in _FUNCTION:
        words.pop()
    return words


def _longest_run(
    mine: Sequence[_Word], theirs: Sequence[_Word], asked: set[str]
) -> Sequence[_Word]:
    """The longest run of words outside the question that stands in both."""
    best: Sequence[_Word] = ()
    for start in range(len(mine)):
        for other in range(len(theirs)):
            length = 0
            while (
                start + length < len(mine)
                and other + length < len(theirs)
                and mine[start + length].text == theirs[other + length].text
                and mine[start + length].text not in asked
            ):
                length += 1
            if len(_trimmed(mine[start : start + length])) > len(_trimmed(best)):
                best = mine[start : start + length]
    return best
