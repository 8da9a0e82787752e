"""Durable files: written beside, fsynced, put in place by a rename, the folder fsynced.

A reader sees the old content or the new, also after a power cut. Needs the standard library only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

# A name may have 255 bytes, and what is written beside it has five more.
_NAME_CHARACTERS: Final = 200


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's renames and removals, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_stream(stream: IO[bytes] | IO[str]) -> None:
    """Wait until what was written to an open file is on the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing; afterwards they are on the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync(path.parent)


def put_in_place(part: Path, path: Path) -> None:
    """Rename a finished `part` on the same file system to `path`, in the place of what is there."""
    sync(part)
    part.replace(path)
    sync(path.parent)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A stream whose content is `path` once the block is left; nothing changes where it raises."""
    part = path.with_name(f".{path.name[-_NAME_CHARACTERS:]}.tmp")
    try:
        with part.open("wb") as stream:
            yield stream
        put_in_place(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by a file of these bytes."""
    with replacing(path) as stream:
        stream.write(data)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by a file of this text in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Replace `path` by `value` as JSON, indented and with sorted keys."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")
