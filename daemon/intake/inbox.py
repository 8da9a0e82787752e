"""Files dropped into the inbox: found by scanning, taken once they no longer change."""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapters import files
from policies.errors import RequestRefused
from policies.facts.splitting import ListSplitter, is_list
from policies.records import content_id
from policies.text import storable

RECEIPT_ENDINGS: Final = (".accepted.json", ".rejected.json")
_TEMPORARY: Final = (".tmp", ".part", ".partial", ".filepart", ".crdownload", ".swp", "~")
_BLOCK: Final = 1 << 20
_SYNCED: Final = 16 * _BLOCK  # so that no single wait for the disk is long
_LONGEST_STEM: Final = 200
_LONGEST_NAME: Final = 2000


@dataclass(frozen=True, slots=True)
class Drop:
    """One entry of the inbox, as it was when it was looked at."""

    path: Path
    inode: int
    size: int
    changed_ns: int
    signature: str
    refusal: str | None = None

    @property
    def name(self) -> str:
        """The file's name as text that can be stored."""
        return storable_name(self.path.name)

    def unchanged(self) -> bool:
        """Whether the entry is still the one that was looked at."""
        try:
            return signature(self.path.lstat()) == self.signature
        except FileNotFoundError:
            return False


def storable_name(name: str) -> str:
    """A file's name as one line of text: what is no text, or steers a terminal, as escapes."""
    return storable(os.fsencode(name).decode("utf-8", "backslashreplace"), _LONGEST_NAME)


def signature(seen: os.stat_result) -> str:
    """What changes whenever the file or its rights do."""
    return f"{seen.st_dev}:{seen.st_ino}:{seen.st_size}:{seen.st_mtime_ns}:{seen.st_ctime_ns}"


def is_ignored(name: str) -> bool:
    """Whether a name marks something still being written, hidden, or a receipt."""
    return name.startswith(".") or name.endswith((*_TEMPORARY, *RECEIPT_ENDINGS))


def receipt_path(drop: Path, accepted: bool) -> Path:
    """Where the receipt of a drop stands."""
    name = drop.name
    if len(os.fsencode(name)) > _LONGEST_STEM:
        name = f"{name[:40]}-{content_id(os.fsencode(name).hex())}"
    return drop.with_name(name + RECEIPT_ENDINGS[0 if accepted else 1])


class Inbox:
    """The folder and what has been seen of it; an entry is ripe once it has rested `stable_s`.

    Every `now` is in seconds of a clock that nobody sets.
    """

    def __init__(self, folder: Path, stable_s: float, max_bytes: int) -> None:
        self.folder = folder
        self._stable_s = stable_s
        self._max_bytes = max_bytes
        self._since: dict[str, tuple[str, float]] = {}

    @property
    def names(self) -> set[str]:
        """Everything that the last scan saw, ripe or not, by names that can be stored."""
        return {storable_name(name) for name in self._since}

    def ripe(self, now: float) -> list[Drop]:
        """Entries that have rested, the oldest first."""
        found: list[tuple[int, str, Drop]] = []
        seen: dict[str, tuple[str, float]] = {}
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if is_ignored(entry.name):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                mark = signature(status)
                before = self._since.get(entry.name)
                since = before[1] if before and before[0] == mark else now
                seen[entry.name] = (mark, since)
                if now - since >= self._stable_s:
                    found.append((status.st_mtime_ns, entry.name, self._drop(entry.path, status)))
        self._since = seen
        return [drop for _, _, drop in sorted(found, key=lambda f: f[:2])]

    def look(self, path: Path) -> Drop:
        """A file anywhere, judged as if it lay here; `RequestRefused` where there is none."""
        try:
            return self._drop(str(path), path.stat())
        except FileNotFoundError:
            raise RequestRefused(f"{path} does not exist") from None

    def put(self, part: Path, name: str, now: float) -> Path:
        """A whole file under a name that nothing has, durably; it need not rest."""
        files.sync(part)
        while True:
            path = free_name(self.folder, name)
            try:
                path.hardlink_to(part)  # unlike a rename it takes no one's place
            except FileExistsError:
                continue
            part.unlink()
            files.sync(self.folder)
            self.rested(path, now)
            return path

    def rested(self, path: Path, now: float) -> None:
        """An entry is known to be whole: it need not rest."""
        self._since[path.name] = (signature(path.lstat()), now - self._stable_s)

    def _drop(self, path: str, status: os.stat_result) -> Drop:
        return Drop(
            path=Path(path),
            inode=status.st_ino,
            size=status.st_size,
            changed_ns=status.st_mtime_ns,
            signature=signature(status),
            refusal=self._refusal(status),
        )

    def _refusal(self, status: os.stat_result) -> str | None:
        mode = status.st_mode
        if stat.S_ISDIR(mode):
            return "is a directory; drop files, not folders"
        if stat.S_ISLNK(mode):
            return "is a symbolic link; copy the file itself here"
        if not stat.S_ISREG(mode):
            return "is not a regular file"
        if status.st_size == 0:
            return "is empty; write one JSON object a line"
        if status.st_size > self._max_bytes:
            return (
                f"is {status.st_size / 2**20:.1f} MiB; at most {self._max_bytes / 2**20:g} MiB are "
                "read (setting intake.max_file_mb)"
            )
        return None


def free_name(folder: Path, name: str) -> Path:
    """A path in a folder that nothing has taken and that is not ignored."""
    name = name.lstrip(".") or "facts.jsonl"
    stem, dot, ending = name.rpartition(".")
    for number in itertools.count(1):
        numbered = f"{stem}-{number}{dot}{ending}" if stem else f"{name}-{number}"
        path = folder / (name if number == 1 else numbered)
        if is_ignored(path.name):
            path = path.with_name(path.name + ".jsonl")
        if not os.path.lexists(path):
            return path
    raise AssertionError


def opened(path: Path) -> int:
    """A descriptor to read a file; never follows a symbolic link, never waits for a pipe."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied: its hash as a batch is named, its bytes, its lines (or items of a list)."""

    batch: str
    size: int
    lines: int


def copy(
    path: Path, target: Path, start: int = 0, most: int | None = None
) -> Generator[None, None, Copied]:
    """Copy a file from byte `start` on, block by block, `most` bytes at most; fsynced at the end.

    Raises `OSError`.
    """
    digest, size, lines = hashlib.sha256(), 0, 0
    splitter: ListSplitter | None = None
    with os.fdopen(opened(path), "rb") as source, target.open("wb") as out:
        source.seek(start)
        while block := source.read(_BLOCK if most is None else min(_BLOCK, most - size)):
            if size == 0 and is_list(block):
                splitter = ListSplitter(0)
            lines += block.count(b"\n") if splitter is None else len(splitter.feed(block))
            digest.update(block)
            out.write(block)
            size += len(block)
            if size % _SYNCED == 0:
                files.sync_stream(out)
            yield None
        files.sync_stream(out)
    return Copied(digest.hexdigest()[:32], size, lines)
