"""The text of retracted facts leaves every file below the state directory."""

from __future__ import annotations

import json
import mmap
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from adapters import files, store
from daemon.base import faults
from daemon.config.layout import Layout
from daemon.intake.admit import Rules
from daemon.intake.inbox import RECEIPT_ENDINGS
from daemon.ledger.records import Tainted
from policies.facts.admission import parse_line
from policies.facts.splitting import ListSplitter, is_list
from policies.facts.traces import (
    ERASED,
    Trace,
    answered,
    could_tell,
    mentioned,
    readings,
    says,
    scrubbed,
    tells,
)
from policies.gate.records import ItemResult
from policies.records import Fact

HALF: Final = ".tmp-"
GONE: Final = ".tmp-gone-"
PIECE: Final = 1000
BLOCK: Final = 1 << 20
_SNIFF: Final = 1 << 12


@dataclass(frozen=True, slots=True)
class Finder:
    """Tells quickly whether a line could give one of the facts away, and then whether it does."""

    traces: Sequence[Trace]
    rules: Rules

    def gives_away(self, line: bytes) -> bool:
        """Whether a line says, asks to retract, or mentions one of the facts."""
        text = line.decode("utf-8", "replace")
        near = could_tell(self.traces, readings(text))
        if not near:
            return False
        parsed = parse_line(line, 1, self.rules.limits, self.rules.fmt)
        if isinstance(parsed, Fact):
            return any(says(trace, parsed) for trace in near)
        return mentioned(near, text)


def erase_archive(layout: Layout, finder_of: Callable[[str], Finder]) -> Iterator[None]:
    """Blank the lines of archived drops; every other line keeps its place and number."""
    for path in sorted(layout.archive.glob("*.jsonl")):
        finder = finder_of(path.stem)
        if finder.traces:
            yield from _erase_lines(path, finder)
    faults.point("forget:archive")


def _erase_lines(path: Path, finder: Finder) -> Iterator[None]:
    with path.open("rb") as source:
        in_list = is_list(source.read(_SNIFF))
        source.seek(0)
        found: list[tuple[int, int]] = []
        spans = _items(source) if in_list else _lines(source)
        for number, (start, line) in enumerate(spans):
            if line.strip() and finder.gives_away(line):
                found.append((start, len(line)))
            if number % PIECE == 0:
                yield None
    if found:
        _blank(path, found, b"null" if in_list else b"")
        yield None


def _lines(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    at = 0
    while line := source.readline(BLOCK):
        yield at, line.rstrip(b"\r\n")
        at += len(line)


def _items(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The items of a JSON list with the places where they begin."""
    with closing(mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)) as data:
        splitter = ListSplitter(len(data))
        for block in range(0, len(data), BLOCK):
            for item in splitter.feed(data[block : block + BLOCK]):
                raw = item.raw.strip()
                start = data.rfind(raw, 0, item.end)
                if raw and start >= 0:
                    yield start, raw


def _blank(path: Path, spans: Sequence[tuple[int, int]], instead: bytes) -> None:
    """The same file with these spans filled with blanks (after `instead`), put in place at once.

    It keeps its time: files of the archive that are dropped again are taken in that order.
    """
    part, before = path.with_name(f".{os.getpid()}.erased.part"), path.stat()
    with path.open("rb") as source, part.open("wb") as out:
        shutil.copyfileobj(source, out, BLOCK)
        for start, size in spans:
            out.seek(start)
            out.write(instead.ljust(size)[:size])
    os.utime(part, ns=(before.st_atime_ns, before.st_mtime_ns))
    files.put_in_place(part, path)


def erase_receipts(layout: Layout, traces: Sequence[Trace]) -> Iterator[None]:
    """Take what the receipts say of the facts out of them."""
    for ending in RECEIPT_ENDINGS:
        for path in sorted(layout.inbox.glob(f"*{ending}")):
            text = path.read_text(encoding="utf-8", errors="replace")
            if tells(traces, text):
                files.write_text(path, json.dumps(scrubbed(_read(text), traces), indent=2) + "\n")
            yield None
    faults.point("forget:receipts")


def erase_work(layout: Layout, traces: Sequence[Trace], open_plans: Collection[int]) -> None:
    """Remove the working directories that hold any of it, and what was published halfway.

    To be called while no child runs.
    """
    for folder in sorted(layout.work.iterdir()):
        plan = folder.name.split("-")[0]
        if not folder.is_dir() or (plan.isdigit() and int(plan) in open_plans):
            continue
        if any(_file_gives_away(path, traces) for path in _files(folder)):
            store.remove(folder)
    for parent in (layout.adapters, layout.served, layout.probes):
        for half in parent.glob(f"{HALF}*"):
            store.remove(half)
    faults.point("forget:work")


def held_by(layout: Layout, tainted: Tainted) -> list[Path]:
    """Every path at which an adapter or a revision that knows a retracted fact may lie.

    The ledger's own paths, the same names below the state directory as it lies now, and what a
    deletion has left halfway.
    """
    adapters = {Path(path) for path in tainted.adapters.values()}
    homes = {layout.adapters / path.name for path in adapters}
    served = {layout.served / name for name in tainted.served}
    found = adapters | homes | served
    return sorted(found | {path.with_name(f"{GONE}{path.name}") for path in found})


def remaining(paths: Sequence[Path]) -> list[Path]:
    """Those of the paths at which something lies, whatever it is."""
    return [path for path in paths if os.path.lexists(path)]


def erase_answers(
    layout: Layout, traces: Sequence[Trace], models: Collection[str]
) -> Iterator[None]:
    """Remove what tainted models answered, and every other model's answers that give facts away."""
    tainted = {sha[:12] for sha in models}
    names = frozenset[str]().union(*(trace.ids for trace in traces))
    for folder in sorted(path for path in layout.answers.iterdir() if path.is_dir()):
        if folder.name in tainted:
            store.remove(folder)
        else:
            for path in sorted(folder.glob("*.jsonl")):
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
                kept = [line for line in lines if not _measured(line, names, traces)]
                if len(kept) < len(lines):
                    files.write_text(path, "".join(kept))
                yield None
    faults.point("forget:answers")


def _measured(line: str, names: Collection[str], traces: Sequence[Trace]) -> bool:
    try:
        result = ItemResult.model_validate_json(line)
    except ValueError:
        return mentioned(traces, line)
    return (
        result.id.rpartition("#")[0] in names
        or answered(traces, result.output)
        or mentioned(traces, line)
    )


def erase_rest(layout: Layout, traces: Sequence[Trace]) -> Iterator[None]:
    """Logs and whatever else lies in the state directory: lines become blanks, where they stand.

    A log is written by a process that holds it open, so it is not replaced.
    """
    mine = {
        layout.archive,
        layout.inbox,
        layout.work,
        layout.adapters,
        layout.served,
        layout.probes,
        layout.answers,
        layout.root / "expert",
    }
    for path in sorted(_files(layout.root, mine)):
        if path.name.startswith(layout.ledger.name) or path in (layout.admin_key, layout.lock):
            continue
        yield from _blank_lines(path, traces)
    faults.point("forget:rest")


def _blank_lines(path: Path, traces: Sequence[Trace]) -> Iterator[None]:
    found: list[tuple[int, int]] = []
    with path.open("r+b") as file:
        for number, (start, line) in enumerate(_lines(file)):
            if mentioned(traces, line.decode("utf-8", "replace")):
                found.append((start, len(line)))
            if number % PIECE == 0:
                yield None
        for start, size in found:
            file.seek(start)
            file.write(b" " * size)
        files.sync_stream(file)


def _read(text: str) -> Any:  # noqa: ANN401 - whatever stands there
    try:
        return json.loads(text)
    except ValueError:
        return {"error": ERASED}


def _file_gives_away(path: Path, traces: Sequence[Trace]) -> bool:
    with path.open("rb") as file:
        return any(tells(traces, line.decode("utf-8", "replace")) for _, line in _lines(file))


def _files(folder: Path, without: Collection[Path] = ()) -> Iterator[Path]:
    """Regular files below a folder, those below `without` left out."""
    for path in folder.iterdir():
        if path in without or path.is_symlink():
            continue
        if path.is_dir():
            yield from _files(path, without)
        elif path.is_file():
            yield path
