"""The text of retracted facts leaves every file below the state directory."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from adapters import files
from daemon.base import faults
from daemon.config.layout import Layout
from daemon.intake.admit import Rules
from daemon.intake.claims import Claims
from daemon.intake.inbox import RECEIPT_ENDINGS
from daemon.ledger.database import BEFORE
from daemon.ledger.records import Tainted
from daemon.retraction import scanning
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
LONGEST: Final = 1 << 20  # a longer line is no fact by any limit that is sensible
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

    def spans(self, block: Sequence[scanning.Line]) -> list[tuple[int, int]]:
        """Place and size of the lines of a block that give a fact away."""
        if not scanning.near(self.traces, block):
            return []
        return [(at, len(line)) for at, line in block if line.strip() and self.gives_away(line)]


# Every function below that gives paths pauses after each few lines or files, and says where it is.


def erase_archive(
    layout: Layout, finder_of: Callable[[str], Finder], record: Callable[[str, str], None]
) -> Iterator[Path]:
    """Blank the lines of archived drops; every other line keeps its place and number.

    `record` is told the batch and the new SHA-256 of its archive before that is put in place.
    """
    for path in sorted(layout.archive.glob("*.jsonl")):
        finder = finder_of(path.stem)
        if finder.traces:
            yield from _erase_lines(path, finder, record)
    files.sync(layout.archive)
    faults.point("forget:archive")


def _erase_lines(path: Path, finder: Finder, record: Callable[[str, str], None]) -> Iterator[Path]:
    with path.open("rb") as source:
        in_list = _has_list(source)
        found: list[tuple[int, int]] = []
        spans = _items(source) if in_list else scanning.lines(source, LONGEST)
        for block in scanning.blocks(spans):
            found += finder.spans(block)
            yield path
    if found:
        yield from _blank(path, found, b"null" if in_list else b"", record)


def erase_claimed(layout: Layout, finder: Finder) -> Iterator[Path]:
    """Blank the lines of files that were read and are still followed, where they stand.

    What may not be written (another user's file) is followed no longer: it is deleted.
    """
    claims = Claims(layout.inbox)
    for claim in claims.all():
        with claim.path.open("rb") as source:
            in_list = _has_list(source)
            found: list[tuple[int, int]] = []
            spans = _items(source) if in_list else scanning.lines(source, LONGEST)
            for block in scanning.blocks(spans):
                found += finder.spans(block)
                yield claim.path
        if found:
            before = claim.path.stat()
            try:
                with claim.path.open("r+b") as file:
                    scanning.blank(file, found, b"null" if in_list else b"")
                os.utime(claim.path, ns=(before.st_atime_ns, before.st_mtime_ns))
            except PermissionError:
                claims.release(claim)
    faults.point("forget:claimed")


def _has_list(source: BinaryIO) -> bool:
    found = is_list(source.read(_SNIFF))
    source.seek(0)
    return found


def _items(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The items of a JSON list with the places where they begin."""
    with closing(mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)) as data:
        splitter = ListSplitter(len(data))
        for block in range(0, len(data), scanning.BLOCK):
            for item in splitter.feed(data[block : block + scanning.BLOCK]):
                raw = item.raw.strip()
                start = data.rfind(raw, 0, item.end)
                if raw and start >= 0:
                    yield start, raw


def _blank(
    path: Path,
    spans: Sequence[tuple[int, int]],
    instead: bytes,
    record: Callable[[str, str], None],
) -> Iterator[Path]:
    """The same file with these spans filled with blanks (after `instead`), put in place at once.

    It keeps its time: files of the archive that are dropped again are taken in that order.
    """
    part, before = path.with_name(f".{os.getpid()}.erased.part"), path.stat()
    with path.open("rb") as source, part.open("wb") as out:
        while block := source.read(1 << 20):
            out.write(block)
            yield path
        scanning.blank(out, spans, instead)
    with part.open("rb") as blanked:
        record(path.stem, hashlib.file_digest(blanked, "sha256").hexdigest())
    os.utime(part, ns=(before.st_atime_ns, before.st_mtime_ns))
    files.put_in_place(part, path)


def erase_receipts(layout: Layout, traces: Sequence[Trace]) -> Iterator[Path]:
    """Take what the receipts say of the facts out of them."""
    for ending in RECEIPT_ENDINGS:
        for path in sorted(layout.inbox.glob(f"*{ending}")):
            text = path.read_text(encoding="utf-8", errors="replace")
            if tells(traces, text):
                files.write_text(path, json.dumps(scrubbed(_read(text), traces), indent=2) + "\n")
            yield path
    files.sync(layout.inbox)
    faults.point("forget:receipts")


def erase_work(
    layout: Layout, traces: Sequence[Trace], open_plans: Collection[int]
) -> Iterator[Path]:
    """Remove the working directories that hold any of it, and what was published halfway.

    To be called while no child runs.
    """
    for folder in sorted(layout.work.iterdir()):
        plan = folder.name.split("-")[0]
        if not folder.is_dir() or (plan.isdigit() and int(plan) in open_plans):
            continue
        if folder.name.startswith(HALF):
            continue
        if (yield from _tells(folder, traces)):
            folder.rename(folder.with_name(f"{GONE}{folder.name}"))
        else:
            files.sync(folder)  # what its stage's end removed may not be gone from the disk yet
    for parent in (layout.work, layout.adapters, layout.served, layout.probes):
        for half in parent.glob(f"{HALF}*"):
            yield from scanning.removal(half)
        files.sync(parent)
    faults.point("forget:work")


def _tells(folder: Path, traces: Sequence[Trace]) -> Generator[Path, None, bool]:
    """Whether a file below a folder tells of one of the facts."""
    for path in scanning.regular_files(folder):
        with path.open("rb") as file:
            for block in scanning.blocks(scanning.lines(file)):
                close = scanning.near(traces, block)
                if close and any(tells(close, scanning.text(line)) for _, line in block):
                    return True
                yield path
        yield path
    return False


def held_by(layout: Layout, tainted: Tainted) -> list[Path]:
    """Every path at which an adapter or a revision that knows a retracted fact may lie.

    That is below the state directory as it lies now, and what a deletion has left halfway.
    """
    found = {layout.adapter(sha256) for sha256 in tainted.adapters}
    found |= {layout.served / name for name in tainted.served}
    return sorted(found | {path.with_name(f"{GONE}{path.name}") for path in found})


def remaining(paths: Sequence[Path]) -> list[Path]:
    """Those of the paths at which something lies, whatever it is."""
    return [path for path in paths if os.path.lexists(path)]


def erase_answers(
    layout: Layout, traces: Sequence[Trace], models: Collection[str]
) -> Iterator[Path]:
    """Remove what tainted models answered, and every other model's answers that give facts away."""
    tainted = {sha[:12] for sha in models}
    names = frozenset[str]().union(*(trace.ids for trace in traces))
    for folder in sorted(path for path in layout.answers.iterdir() if path.is_dir()):
        if folder.name in tainted:
            yield from scanning.removal(folder)
            continue
        for path in sorted(folder.glob("*.jsonl")):
            yield from _erase_measured(path, names, traces)
        files.sync(folder)
    files.sync(layout.answers)
    faults.point("forget:answers")


def _erase_measured(path: Path, names: Collection[str], traces: Sequence[Trace]) -> Iterator[Path]:
    """Put the same file in place without the answers that give facts away, if it has any."""
    part, gone = path.with_name(f".{os.getpid()}.erased.part"), False
    with path.open("rb") as source, part.open("wb") as out:
        for block in scanning.blocks(enumerate(source)):
            close = scanning.near(traces, block)
            for _, line in block:
                if close and _measured(scanning.text(line), names, close):
                    gone = True
                else:
                    out.write(line)
            yield path
    if gone:
        files.put_in_place(part, path)
    else:
        part.unlink()


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


def erase_rest(layout: Layout, traces: Sequence[Trace]) -> Iterator[Path]:
    """Logs and whatever else lies in the state directory: lines become blanks, where they stand.

    A log is written by a process that holds it open, so it is not replaced. Copies of the ledger
    from before a migration go as a whole. `records` holds the base's numbers on configured texts.
    """
    mine = {
        layout.archive,
        layout.inbox,
        layout.work,
        layout.adapters,
        layout.served,
        layout.probes,
        layout.answers,
        layout.records,
        layout.root / "expert",
    }
    spared = {layout.admin_key, layout.operator_key, layout.lock}
    spared |= {layout.anchor, layout.anchor_key}
    for path in sorted(_files(layout.root, mine)):
        if path.name.startswith(f"{layout.ledger.name}{BEFORE}"):
            path.unlink()
            files.sync(path.parent)
            continue
        if path.name.startswith(layout.ledger.name) or path in spared:
            continue
        for _ in scanning.blank_mentions(path, traces):
            yield path
    faults.point("forget:rest")


def _read(text: str) -> Any:  # noqa: ANN401 - whatever stands there
    try:
        return json.loads(text)
    except ValueError:
        return {"error": ERASED}


def _files(folder: Path, without: Collection[Path] = ()) -> Iterator[Path]:
    """Regular files below a folder, those below `without` left out."""
    for path in folder.iterdir():
        if path in without or path.is_symlink():
            continue
        if path.is_dir():
            yield from _files(path, without)
        elif path.is_file():
            yield path
