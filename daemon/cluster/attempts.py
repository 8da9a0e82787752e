"""The attempts of a stage on a cluster: each has a folder of its own, and only the newest counts.

A node that was given up may still work. It reads and writes nothing but its attempt's folder, so
it can neither publish nor disturb the attempt that has taken its place.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapters import files
from daemon.children import request
from daemon.children.jobs import last_word

FOLDER: Final = "attempts"
CURRENT: Final = "current"
_ASKED: Final = "asked.sha256"
CHECKPOINT: Final = "checkpoint"


@dataclass(frozen=True, slots=True)
class NodeAttempt:
    """One attempt, a working directory of a leased child like any other."""

    number: int
    path: Path


def begin(workdir: Path, outputs: Iterable[str]) -> NodeAttempt:
    """The next attempt at what `workdir` is asked for; every earlier one is superseded.

    `outputs` are the keys of the request that name folders to write to: they name folders of the
    attempt instead. It goes on from the checkpoint of the attempt before. To be called by whoever
    holds the lock of `workdir`.
    """
    earlier = list(_existing(workdir))
    number = 1 + max((one.number for one in earlier), default=0)
    path = workdir / FOLDER / f"{number:04}"
    files.make_folder(path)
    files.write_text(workdir / FOLDER / CURRENT, str(number))
    asked = digest(workdir)
    tree: dict[str, Any] = json.loads((workdir / request.RECORD).read_text())
    tree |= {key: os.fspath(path / key) for key in outputs if tree.get(key) is not None}
    # A link, so that what the daemon removes once the stage is done is gone from here as well.
    (path / request.ROWS).symlink_to(Path("..", "..", request.ROWS))
    source = earlier[0].path if earlier else workdir
    link_tree(source / CHECKPOINT, path / CHECKPOINT)
    files.write_text(path / _ASKED, asked)
    files.write_text(path / request.RECORD, json.dumps(tree, indent=1))
    for old in earlier[1:]:
        shutil.rmtree(old.path, ignore_errors=True)
    return NodeAttempt(number, path)


def clear(workdir: Path) -> None:
    """Remove all from which a further attempt would go on, on the cluster or without one, and the
    facts that it was asked for."""
    for name in (CHECKPOINT, FOLDER):
        shutil.rmtree(workdir / name, ignore_errors=True)
    request.remove_rows(workdir)  # a kill may have come before


def is_current(path: Path) -> bool:
    """Whether no later attempt has taken the place of the one in `path`."""
    try:
        newest = int((path.parent / CURRENT).read_text())
    except (FileNotFoundError, ValueError):
        return False
    return newest == int(path.name) and path.is_dir()


def finished(workdir: Path) -> tuple[NodeAttempt, Mapping[str, Any]] | None:
    """The newest attempt that has a report on what `workdir` is asked for now, with its report.

    Whoever followed it may be gone: its result is as good as that of another attempt.
    """
    asked = digest(workdir)
    for attempt in _existing(workdir):
        if same_request(attempt.path, asked):
            with suppress(ValueError):  # damaged: as good as none
                ended = last_word(attempt.path)
                if ended is not None and ended.report is not None:
                    return attempt, ended.report
    return None


def before(attempt: NodeAttempt) -> Path | None:
    """The attempt before this one, if it was asked for the same."""
    asked = (attempt.path / _ASKED).read_text()
    for other in _existing(attempt.path.parents[1]):
        if other.number < attempt.number and same_request(other.path, asked):
            return other.path
    return None


def digest(workdir: Path) -> str:
    """SHA-256 of all that is asked for."""
    hashed = hashlib.sha256()
    for name in (request.RECORD, request.ROWS):
        with suppress(FileNotFoundError):
            hashed.update((workdir / name).read_bytes() + b"\0")
    return hashed.hexdigest()


def same_request(path: Path, asked: str) -> bool:
    """Whether the attempt in `path` was asked for what has this digest."""
    try:
        return (path / _ASKED).read_text() == asked
    except FileNotFoundError:
        return False


def link_tree(source: Path, target: Path) -> None:
    """The same files under another name. What vanishes meanwhile, or cannot be linked, is left
    out: only what can be computed again is handed on so."""
    if not source.is_dir():
        return
    for path in sorted(source.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.parts[-2:]):
            linked = target / path.relative_to(source)
            linked.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):
                os.link(path, linked)


def _existing(workdir: Path) -> Iterator[NodeAttempt]:
    """Every attempt so far, the newest first."""
    for path in sorted((workdir / FOLDER).glob("[0-9]*"), reverse=True):
        yield NodeAttempt(int(path.name), path)
