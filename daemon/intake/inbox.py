"""Files dropped into the inbox: found by scanning, taken once they no longer change."""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapters import files
from policies.errors import RequestRefused
from policies.records import content_id

RECEIPT_ENDINGS: Final = (".accepted.json", ".rejected.json")
_TEMPORARY: Final = (".tmp", ".part", ".partial", ".filepart", ".crdownload", ".swp", "~")
_BLOCK: Final = 1 << 20
_SYNCED: Final = 16 * _BLOCK  # so that no single wait for the disk is long
_LONGEST_STEM: Final = 200


@dataclass(frozen=True, slots=True)
class Drop:
    """One entry of the inbox, as it was when it was looked at."""

    path: Path
    size: int
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
    """A file's name without bytes that are no text."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


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

    def free_name(self, name: str) -> Path:
        """A path in the folder that nothing has taken and that is not ignored."""
        name = name.lstrip(".") or "facts.jsonl"
        stem, dot, ending = name.rpartition(".")
        for number in itertools.count(1):
            numbered = f"{stem}-{number}{dot}{ending}" if stem else f"{name}-{number}"
            path = self.folder / (name if number == 1 else numbered)
            if is_ignored(path.name):
                path = path.with_name(path.name + ".jsonl")
            if not path.exists() and not path.is_symlink():
                return path
        raise AssertionError

    def rested(self, path: Path, now: float) -> None:
        """An entry is known to be whole: it need not rest."""
        self._since[path.name] = (signature(path.lstat()), now - self._stable_s)

    def _drop(self, path: str, status: os.stat_result) -> Drop:
        return Drop(
            path=Path(path),
            size=status.st_size,
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


def copy_and_hash(drop: Drop, target: Path) -> Iterator[str]:
    """Copy a drop block by block, yielding the digest so far ("" until done); fsynced at the end.

    Raises `OSError`; never follows a symbolic link.
    """
    digest, written = hashlib.sha256(), 0
    descriptor = os.open(drop.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as source, target.open("wb") as out:
        while block := source.read(_BLOCK):
            digest.update(block)
            out.write(block)
            if len(block) == _BLOCK:
                written += _BLOCK
                if written % _SYNCED == 0:
                    files.sync_stream(out)
                yield ""
        files.sync_stream(out)
    yield digest.hexdigest()[:32]
