"""A JSON list cut into its items while it streams by, whatever its size."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_OUTSIDE: Final = re.compile(rb'["\[\]{},]')
_INSIDE: Final = re.compile(rb'["\\]')
_BLANK: Final = b" \t\r\n\f\v"
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Item:
    """One item as it was written; cut where it is longer than the limit. `end` is where it ended,
    `size` its full length in bytes; `after` marks what stands behind the end of the list.
    """

    raw: bytes
    size: int
    end: int
    after: bool = False


def is_list(beginning: bytes) -> bool:
    """Whether a file that begins so is a JSON list of objects, rather than lines."""
    text = beginning.removeprefix(_BOM).lstrip(_BLANK)
    return text[:1] == b"[" and text[1:].lstrip(_BLANK)[:1] in (b"{", b"]", b"")


class ListSplitter:
    """Takes the bytes of a list in blocks and gives its items.

    Memory is bounded by `limit` and the block. To resume later, make a new one with `position` at
    an item's `end` and feed it from there.
    """

    def __init__(self, limit: int, position: int = 0) -> None:
        self._limit = limit
        self._at = position
        self._depth = 1 if position else 0
        self._in_text = False
        self._escaped = False
        self._item = bytearray()
        self._size = 0
        self._closed = False

    def feed(self, block: bytes) -> list[Item]:
        """The items that end in `block`."""
        found: list[Item] = []
        start = 0
        while start < len(block):
            start = self._advance(block, start, found)
        self._at += len(block)
        return found

    def finish(self) -> list[Item]:
        """What is left when the bytes end: an item that was cut off, or text behind the list."""
        left = self._cut(self._at)
        return [left] if left is not None else []

    def _advance(self, block: bytes, start: int, found: list[Item]) -> int:
        """Read up to the next byte that matters; the index behind it."""
        if self._closed:
            self._keep(block, start, len(block))
            return len(block)
        if self._escaped:
            self._escaped = False
            self._keep(block, start, start + 1)
            return start + 1
        match = (_INSIDE if self._in_text else _OUTSIDE).search(block, start)
        if match is None:
            self._keep(block, start, len(block))
            return len(block)
        index = match.start()
        byte = block[index : index + 1]
        if self._in_text:
            self._in_text, self._escaped = byte != b'"', byte == b"\\"
            self._keep(block, start, index + 1)
        else:
            self._structure(block, start, index, byte, found)
        return index + 1

    def _structure(
        self, block: bytes, start: int, index: int, byte: bytes, found: list[Item]
    ) -> None:
        if self._depth == 0:
            self._depth = 1
            return
        ends = self._depth == 1 and byte in b",]"
        self._keep(block, start, index if ends else index + 1)
        if ends:
            item = self._cut(self._at + index)
            if item is not None:
                found.append(item)
            self._closed = byte == b"]"
        elif byte == b'"':
            self._in_text = True
        elif byte in b"[{":
            self._depth += 1
        elif byte in b"]}":
            self._depth -= 1

    def _keep(self, block: bytes, start: int, stop: int) -> None:
        if self._depth == 0:
            return
        if not self._size:
            while start < stop and block[start] in _BLANK:
                start += 1
        self._size += stop - start
        room = self._limit + 2 - len(self._item)
        if room > 0:
            self._item += block[start : min(stop, start + room)]

    def _cut(self, end: int) -> Item | None:
        raw, size = bytes(self._item), self._size
        self._item.clear()
        self._size = 0
        return Item(raw.rstrip(_BLANK), size, end, self._closed) if raw else None
