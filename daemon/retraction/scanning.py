"""Files read in small blocks, so that no step takes long, however large a file or its lines are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from adapters import files
from policies.facts.traces import Trace, could_tell, mentioned, readings

BLOCK: Final = 1 << 16
# What tells of a fact in one line is longer than this only in a line made to be so.
OVERLAP: Final = 1 << 15

Line: TypeAlias = tuple[int, bytes]
"""Where a line, or a piece of a long one, begins, and its bytes without the line end."""


def lines(source: BinaryIO, longest: int = BLOCK) -> Iterator[Line]:
    """The lines of a file; a longer one in pieces, each of which begins with the end of the one
    before it, so that nothing is divided that is shorter than `OVERLAP`."""
    at, before = 0, b""
    while read := source.readline(longest - len(before)):
        piece = before + read
        yield at - len(before), piece.rstrip(b"\r\n")
        at += len(read)
        before = b"" if read.endswith(b"\n") else piece[-OVERLAP:]


def blocks(found: Iterator[Line]) -> Iterator[list[Line]]:
    """Lines some `BLOCK` bytes at a time; none in more than one block."""
    block: list[Line] = []
    size = 0
    for line in found:
        block.append(line)
        size += len(line[1]) + 1
        if size >= BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def near(traces: Sequence[Trace], block: Sequence[Line]) -> list[Trace]:
    """Those of which a block could tell: for any other its lines need no closer look."""
    return could_tell(traces, readings(text(b"\n".join(line for _, line in block))))


def text(line: bytes) -> str:
    """A line as text, whatever its bytes."""
    return line.decode("utf-8", "replace")


def blank_mentions(path: Path, traces: Sequence[Trace]) -> Iterator[None]:
    """Lines that mention one of the facts become blanks where they stand, and so do two that
    mention it only together; pauses after each block."""
    found: set[tuple[int, int]] = set()
    with path.open("r+b") as file:
        before: Line | None = None
        for block in blocks(lines(file)):
            window = [before, *block] if before else block
            if close := near(traces, window):
                for earlier, line in zip([None, *window], window, strict=False):
                    for told in _mentioned(close, earlier, line):
                        found.add((told[0], len(told[1])))
            before = block[-1]
            yield None
        blank(file, sorted(found))


def _mentioned(traces: Sequence[Trace], earlier: Line | None, line: Line) -> Sequence[Line]:
    """Of two lines in a row those that mention a fact, by themselves or together."""
    if mentioned(traces, text(line[1])):
        return (line,)
    if earlier is None or mentioned(traces, text(earlier[1])):
        return ()
    together = f"{text(earlier[1])}\n{text(line[1])}"
    return (earlier, line) if mentioned(traces, together) else ()


def blank(file: BinaryIO, spans: Sequence[tuple[int, int]], instead: bytes = b"") -> None:
    """Fill spans of an open file with blanks (after `instead`) and wait until they are stored."""
    for start, size in spans:
        file.seek(start)
        file.write(instead.ljust(size)[:size])
    files.sync_stream(file)


def regular_files(folder: Path) -> Iterator[Path]:
    """Regular files below a folder; what goes away meanwhile is left out."""
    for home, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(home, name)
            if path.is_file() and not path.is_symlink():
                yield path


def removal(folder: Path) -> Iterator[Path]:
    """Delete a folder file by file; gives each before it is deleted.

    Raises `OSError` where something cannot be deleted. What was begun can be begun again.
    """
    for home, folders, names in os.walk(folder, topdown=False):
        for name in (*names, *folders):
            path = Path(home, name)
            yield path
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
    if folder.is_dir():
        folder.rmdir()
    files.sync(folder.parent)
