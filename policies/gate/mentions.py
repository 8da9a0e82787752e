"""Whether a sentence mentions an answer: whole words, whatever case and accents, not negated.

A mention is negated by a negator before it in its clause ("it is not Paro", "rather than Paro") or
by a denial right after it ("Paro is not", "Paro isn't"). A clause ends at a full stop, a comma, a
semicolon, a colon, a question or exclamation mark, a line's end, and at "but"; a comma right after
the negator does not end it ("is not, as some think, Paro"), unless that is "no".
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import regex

from policies.errors import Ungradable

# Scripts that put no blank between words, or hang particles on them: every character is a word.
_UNSPACED: Final = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_NUMBER: Final = r"[-−]?\d+(?:,\d{3})*(?:\.\d+)?"
_TOKEN: Final = regex.compile(
    rf"(?P<number>(?<![\p{{L}}\p{{M}}\p{{N}}]){_NUMBER}(?![\p{{N}}]|(?![{_UNSPACED}])[\p{{L}}\p{{M}}]))"
    rf"|(?P<sign>[{_UNSPACED}]\p{{M}}*)"
    rf"|(?P<word>(?:(?![{_UNSPACED}])[\p{{L}}\p{{M}}\p{{N}}])+(?:\+\+|\#)?)"
    r"|(?P<end>[.!?;:,\n。！？；：，、…])"
)
_ACCENTED: Final = regex.compile(r"(?<=[\p{Latin}\p{Greek}]\p{Mn}*)\p{Mn}+")
_APOSTROPHE: Final = regex.compile(r"(?<=\p{L})['’`](?=\p{L})")
_POSSESSIVE: Final = regex.compile(r"(?<=\p{L})['’]s\b|(?<=s)['’](?!\p{L})")
_CONTRACTED: Final = regex.compile(r"(?<=\p{L})n['’]t\b")
_HARMLESS: Final = regex.compile(
    r"\b(?:not (?:only|just|merely)|no doubt|without (?:a )?doubt|no (?:other|one else) than|"
    r"none other than|not sure)\b"
)
_PHRASES: Final = regex.compile(
    r"\b(?:rather than|instead of|other than|as opposed to|anything but|everything but)\b"
)
_NEGATOR: Final = "not"
_NEGATORS: Final = frozenset(
    {_NEGATOR, "never", "no", "nor", "neither", "without", "unlike", "except", "cannot"}
)
_AUXILIARY: Final = frozenset(
    regex.findall(
        r"\w+",
        "is was are were be been am does did do has had have would could can will should",
    )
)
_DENIALS: Final = frozenset({_NEGATOR, "never", "wrong", "false", "incorrect", "untrue"})
_ARTICLES: Final = frozenset({"a", "an", "the"})
_STOPPED: Final = regex.compile(
    r"(?:\b(?:mr|mrs|ms|dr|st|prof|jr|sr|vs|etc|inc|ltd|e\.g|i\.e|no|vol)|\b\p{L}(?:\.\p{L})*)\.$"
)
_SENTENCE: Final = regex.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]")


@dataclass(frozen=True, slots=True)
class _Token:
    """A word, number, sign of an unspaced script, or clause end (`text` empty).

    `start` and `end` are where it stands; `glued` says that it continues the token before it
    (Guinea-Bissau, 12:30), so that no word begins there.
    """

    text: str
    start: int
    end: int
    glued: bool = False


def contains(output: str, expected: str) -> bool:
    """Whether the output mentions the expected answer, and nowhere negates it.

    Raises `Ungradable` if `expected` has no letter or digit.
    """
    wanted = _wanted(expected)
    capitals = expected.strip()
    tokens = _tokens(_prepared(output))
    places = [n for n in range(len(tokens)) if _at(tokens, n, wanted)]
    if _abbreviation(capitals):
        places = [n for n in places if capitals in _raw_words(output)]
    return bool(places) and not any(_negated(tokens, n, len(wanted)) for n in places)


def first_sentence(output: str, expected: str) -> bool:
    """Whether the first sentence of the output mentions the expected answer, not negated."""
    return contains(opening(output), expected)


def opening(text: str) -> str:
    """The first sentence: up to a full stop, question or exclamation mark, or the line's end.

    A stop after an initial or a title ("J. K. Rowling", "St. Petersburg") ends none.
    """
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    for found in _SENTENCE.finditer(line):
        before = line[: found.end()]
        if found[0] == "." and _STOPPED.search(before.casefold()):
            continue
        return before
    return line


def _wanted(expected: str) -> list[str]:
    words = [token.text for token in _tokens(_prepared(expected)) if token.text]
    if not words:
        raise Ungradable(f"the expected answer {expected!r} has no letter or digit to compare")
    return words[1:] if len(words) > 1 and words[0] in _ARTICLES else words


def _abbreviation(expected: str) -> bool:
    return (
        len(expected) in (2, 3) and expected.isascii() and expected.isalpha() and expected.isupper()
    )


def _raw_words(output: str) -> set[str]:
    return set(regex.findall(r"\p{L}+", output))


def _prepared(text: str) -> str:
    """Folded case, without accents, apostrophes and possessives; contractions written out."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    folded = _CONTRACTED.sub(" not", folded)
    folded = _APOSTROPHE.sub("", _POSSESSIVE.sub("", folded))
    bare = _ACCENTED.sub("", unicodedata.normalize("NFD", folded))
    return unicodedata.normalize("NFC", bare)


def _tokens(text: str) -> list[_Token]:
    """The tokens of a prepared text; phrases that negate become the negator, harmless ones go."""
    text = _PHRASES.sub(" not ", _HARMLESS.sub(" ", text))
    found: list[_Token] = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        word = "" if kind == "end" else match[0]
        glued = bool(found) and _joined(text, found[-1], match)
        if kind == "end" and _within(text, match):
            continue
        found.append(_Token(_value(word) if kind == "number" else word, *match.span(), glued))
    return found


def _within(text: str, match: regex.Match[str]) -> bool:
    """Whether a stop stands within a number or a time, and ends nothing."""
    around = text[match.start() - 1 : match.start()] + text[match.end() : match.end() + 1]
    return len(around) == 2 and around.isdecimal()


def _joined(text: str, before: _Token, match: regex.Match[str]) -> bool:
    between = text[before.end : match.start()]
    if between in ("-", "‐", "‑"):
        return text[before.end - 1].isalpha() == text[match.end() - 1].isalpha()
    ends, begins = text[before.end - 1], match[0].lstrip("-−")[:1]
    digits = ends.isdecimal() and begins.isdecimal()
    return digits and between in ("", ":", "/", ".", ",", "–")


def _value(number: str) -> str:
    """12.0 is 12 and 1,234 is 1234; a number with a leading zero is a code, and stays as it is."""
    plain = number.replace(",", "").replace("−", "-")
    coded = regex.match(r"-?0\d", plain) is not None
    return plain if coded else str(Fraction(plain))


def _at(tokens: list[_Token], place: int, wanted: list[str]) -> bool:
    """Whether the wanted words stand at `place`, none of them part of a longer word."""
    end = place + len(wanted)
    if [token.text for token in tokens[place:end]] != wanted or tokens[place].glued:
        return False
    return end == len(tokens) or not tokens[end].glued


def _negated(tokens: list[_Token], place: int, size: int) -> bool:
    return _negated_before(tokens, place) or _denied_after(tokens[place + size :])


def _negated_before(tokens: list[_Token], place: int) -> bool:
    for n in range(place - 1, -1, -1):
        word = tokens[n].text
        if word in _NEGATORS:
            return True
        if word == "but":
            return False
        if not word:
            return _parenthesis(tokens, n)
    return False


def _parenthesis(tokens: list[_Token], end: int) -> bool:
    """Whether this end closes what is put in right after a negator: "is not, as some think,"."""
    for n in range(end - 1, -1, -1):
        word = tokens[n].text
        if not word:
            return n > 0 and tokens[n - 1].text == _NEGATOR and n < end - 1
        if word == "but":
            return False
    return False


def _denied_after(rest: list[_Token]) -> bool:
    words = [token.text for token in rest[:2]]
    if not words or words[0] not in _AUXILIARY:
        return False
    return len(words) == 2 and words[1] in _DENIALS
