"""What counts as text in a fact: cleaned, bounded, comparable."""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Final

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
# What steers a terminal, ends a line, reorders what is read, is invisible, or is no character.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


class Number(str):
    """A JSON number, kept as it was written."""

    __slots__ = ()


class BadText(ValueError):
    """A value that is not acceptable text; `kind` is a stable word."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


def clean(value: object, name: str, limit: int, *, number: bool = False) -> str:
    """`value` as NFC text without blanks at its ends; raises `BadText`.

    A JSON number is taken as the text it was written as where `number` allows it (an answer
    such as 1990 or 3.10); true, false and null never are.
    """
    if type(value) is str and value.isascii() and value.isprintable() and len(value) <= limit:
        text = value.strip()
        if text:
            return text
    if isinstance(value, Number):
        if not number:
            raise BadText("type", f"{name} must be text, not a number")
        value = str(value)
    if not isinstance(value, str):
        raise BadText("type", f"{name} must be text")
    text = value.strip().replace("\r\n", "\n")
    if not text.isascii():
        if _SURROGATE.search(text):
            raise BadText("encoding", f"{name} holds half a surrogate pair, which is no character")
        text = unicodedata.normalize("NFC", text)
    if not text.isprintable() and (found := _CONTROL.search(text)):
        raise BadText("control", f"{name} holds the control character U+{ord(found[0]):04X}")
    if not text.strip("\u200b\u200c\u200d\u2060\ufeff "):
        raise BadText("empty", f"{name} is empty")
    if len(text) > limit:
        raise BadText("too-long", f"{name} is {len(text)} characters long; at most {limit}")
    return text


def storable(text: str, limit: int) -> str:
    """`text` as one harmless line of at most `limit` characters."""
    return harmless(text[:limit])[:limit]


def harmless(text: str, *, keep: str = "") -> str:
    """`text` as one line that does nothing but be read, on a terminal and in a log.

    Control characters, line ends, marks that reorder or hide text (bidirectional overrides, tags)
    and halves of surrogate pairs are written as escapes, all but the characters in `keep`.
    """
    if text.isascii() and text.isprintable():
        return text
    return _UNSAFE.sub(lambda m: m[0] if m[0] in keep else _escape(m[0]), text)


def harmless_json(document: str) -> str:
    """JSON that says the same without a character that would do anything on a terminal."""
    if document.isascii() and "\x7f" not in document:
        return document
    return _UNSAFE.sub(lambda m: m[0] if m[0] < " " else json.dumps(m[0])[1:-1], document)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def same_text(one: str, other: str) -> bool:
    """Whether two texts differ in nothing but case and blanks."""
    return one == other or folded(one) == folded(other)


def folded(text: str) -> str:
    """A text as it is compared: case folded, blanks collapsed."""
    if "  " in text or not text.isprintable():
        text = " ".join(text.split())
    return text.strip().casefold()


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be."""
    found = difflib.get_close_matches(word[:64].lower(), list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def counted(count: int, noun: str) -> str:
    """A number of things in words: "1 fact", "2 facts"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
