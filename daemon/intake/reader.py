"""The records of a file of facts, one line or one item of a list at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from policies.facts.admission import Format, parse_line, quarantined
from policies.facts.jsonline import LineLimits, is_blank, too_long
from policies.facts.splitting import Item, ListSplitter, is_list
from policies.records import Fact, Quarantined

_BLOCK: Final = 1 << 18
_SNIFF: Final = 1 << 12
_PIECE: Final = 1000


@dataclass(frozen=True, slots=True)
class Raw:
    """One line (or item) as it was written, perhaps cut; `size` is its full length in bytes."""

    number: int
    text: bytes
    size: int
    after: bool = False


class Records:
    """Reads records from a file, able to stop after any and to resume there another time.

    `number` records up to byte `position` have been read before.
    """

    def __init__(
        self, source: BinaryIO, limits: LineLimits, number: int = 0, position: int = 0
    ) -> None:
        source.seek(0)
        self._limits = limits
        self._source = source
        self.number = number
        self.position = position
        self._items: Iterator[Item] | None = None
        if is_list(source.read(_SNIFF)):
            self._items = self._split(position)
        source.seek(position)

    def take(self, count: int, size: int) -> list[Raw]:
        """The next records: at most `count`, and not many more than `size` bytes; blank ones too.

        Empty at the end of the file.
        """
        taken: list[Raw] = []
        so_far = 0
        while len(taken) < count and so_far < size:
            raw = self._next_line() if self._items is None else self._next_item(self._items)
            if raw is None:
                break
            so_far += len(raw.text)
            taken.append(raw)
        if self._items is None:
            self.position = self._source.tell()
        return taken

    def parse(self, raw: Raw, fmt: Format = Format.AUTO) -> Fact | Quarantined | None:
        """What a record says; none where it is blank."""
        if raw.after:
            sentence = "stands behind the end of the list"
            return quarantined(raw.text, raw.number, "not-json", sentence)
        if raw.size > self._limits.line_bytes:
            sentence = too_long(raw.size, self._limits)
            return quarantined(raw.text, raw.number, "too-long", sentence)
        if is_blank(raw.text, raw.number):
            return None
        return parse_line(raw.text, raw.number, self._limits, fmt)

    def _next_line(self) -> Raw | None:
        limit = self._limits.line_bytes
        text = self._source.readline(limit + 2)
        if not text:
            return None
        size = len(text)
        if not text.endswith(b"\n") and size > limit:
            while rest := self._source.readline(_BLOCK):
                size += len(rest)
                if rest.endswith(b"\n"):
                    break
        self.number += 1
        return Raw(self.number, text.removesuffix(b"\n"), size - text.endswith(b"\n"))

    def _next_item(self, items: Iterator[Item]) -> Raw | None:
        item = next(items, None)
        if item is None:
            return None
        self.number += 1
        self.position = item.end
        return Raw(self.number, item.raw, item.size, item.after)

    def _split(self, position: int) -> Iterator[Item]:
        splitter = ListSplitter(self._limits.line_bytes, position)
        while block := self._source.read(_BLOCK):
            yield from splitter.feed(block)
        yield from splitter.finish()


def record(path: Path, number: int, limits: LineLimits) -> bytes:
    """The text of one record of a file, perhaps cut; "" where there is none. Raises `OSError`."""
    with path.open("rb") as source:
        records = Records(source, limits)
        while taken := records.take(_PIECE, _BLOCK):
            for raw in taken:
                if raw.number == number:
                    return raw.text
    return b""
