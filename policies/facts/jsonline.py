"""The bytes of a line become a JSON object, or one clear reason why not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from policies.records import Record
from policies.text import Number

_BOM: Final = b"\xef\xbb\xbf"
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")


class LineLimits(Record):
    """How much one line may hold; lengths of text in characters, of a line in bytes."""

    line_bytes: int = 64 * 1024
    prompt: int = 4000
    answer: int = 2000
    other: int = 4000
    paraphrases: int = 100
    depth: int = 16


class Reason(Exception):
    """Why a line is no fact: a stable word and a sentence."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


DEFAULT_LIMITS: Final = LineLimits()


def lines_of(text: str | bytes) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of every line that is not blank."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    for number, raw in enumerate(data.split(b"\n"), 1):
        if not is_blank(raw, number):
            yield number, raw


def is_blank(raw: bytes, number: int) -> bool:
    """Whether a line holds nothing; blank lines count neither as accepted nor as quarantined."""
    return not (raw.removeprefix(_BOM) if number == 1 else raw).strip(b" \t\r\n\f\v")


def read_object(raw: bytes, number: int, limits: LineLimits) -> dict[str, Any]:
    """The JSON object on a line, its numbers kept as written; raises `Reason`."""
    if len(raw) > limits.line_bytes:
        raise Reason("too-long", too_long(len(raw), limits))
    if number == 1:
        if raw.startswith(_UTF16):
            raise Reason("encoding", "the file is UTF-16; save it as UTF-8")
        raw = raw.removeprefix(_BOM)
    if b"\0" in raw:
        raise Reason("nul", f"holds a NUL byte at byte {raw.index(0) + 1}")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise Reason("encoding", f"is not UTF-8 at byte {error.start + 1}") from None
    if raw.count(b"[") + raw.count(b"{") > limits.depth and _depth(raw) > limits.depth:
        raise Reason("nesting", f"is nested more than {limits.depth} deep")
    value = _decode(text)
    if not isinstance(value, dict):
        raise Reason("not-object", f"is not a JSON object but {named(value)}")
    return value


def too_long(size: int, limits: LineLimits) -> str:
    """The sentence for a line over the limit."""
    return (
        f"is {size} bytes long; at most {limits.line_bytes} are read (setting intake.max_line_kb)"
    )


def _decode(text: str) -> object:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        what = error.msg[0].lower() + error.msg[1:]
        if error.msg == "Extra data":
            what = "more than one value on the line"
        raise Reason("not-json", f"is not JSON: {what} at character {error.pos + 1}") from None
    except RecursionError:
        raise Reason("nesting", "is nested too deep") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Reason("duplicate-key", f"has the key {quote(twice)} twice")
    return record


def _constant(name: str) -> object:
    raise Reason("not-json", f"is not JSON: {name} is not a JSON value")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=Number, parse_float=Number, parse_constant=_constant
)


def _depth(raw: bytes) -> int:
    deepest = depth = 0
    in_text = escaped = False
    for byte in raw:
        if in_text:
            in_text = escaped or byte != 0x22
            escaped = not escaped and byte == 0x5C
        elif byte == 0x22:
            in_text = True
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def quote(text: str) -> str:
    """A text in quotes, cut to a line."""
    return json.dumps(text[:80])


def named(value: object) -> str:
    """What kind of JSON value it is."""
    if isinstance(value, Number):
        return "a number"
    names: dict[type, str] = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return names.get(type(value), "null")
