"""Where backups lie: files by their content, each kept once, and one manifest for each backup."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from adapters import files
from policies.errors import PaloradError
from policies.records import Record

BLOCK: Final = 1 << 20
LEDGER: Final = "ledger.db"
ANOTHER: Final = "choose another backup with --number"


class BackupUnusable(PaloradError):
    """A backup that is damaged, incomplete or not there."""


class BackupFile(Record):
    """One file: its content's hash and size, its rights, and when it was changed."""

    sha256: str
    size: int
    mode: int
    mtime_ns: int


class BackupManifest(Record):
    """What one backup holds: every file by its path below the state directory, and the rights of
    every folder.

    `revision` is the ledger's target and `events` how many events it had, `head` being the hash of
    the last. `damaged` names published directories that were left out because their bytes were not
    those published.
    """

    form: Literal[1] = 1
    made_at: datetime
    revision: int
    events: int
    head: str
    secrets: bool
    damaged: tuple[str, ...] = ()
    folders: Mapping[str, int]
    files: Mapping[str, BackupFile]

    @property
    def bytes(self) -> int:
        """The size of all files together."""
        return sum(entry.size for entry in self.files.values())


class BackupStore:
    """The directory of the backups."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._objects = root / "objects"
        self._manifests = root / "backups"

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the store against another writer; made where it is not there yet."""
        for folder in (self.root, self._objects, self._manifests):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupUnusable(
                f"{self.root}: another backup is being written there; wait until it has ended"
            ) from None
        else:
            self.part.unlink(missing_ok=True)
            yield
        finally:
            os.close(descriptor)

    # --- files by their content ------------------------------------------------------------------

    @property
    def part(self) -> Path:
        """Where the one writer puts together what it adds."""
        return self.root / ".part"

    def path(self, sha256: str) -> Path:
        """Where the content with this hash lies."""
        return self._objects / sha256[:2] / sha256

    def holds(self, sha256: str, size: int) -> bool:
        """Whether this content is there, as far as its size tells."""
        try:
            return self.path(sha256).stat().st_size == size
        except FileNotFoundError:
            return False

    def take(self, sha256: str) -> None:
        """Keep `part`, whose hash this is."""
        target = self.path(sha256)
        if self.holds(sha256, self.part.stat().st_size):
            self.part.unlink()
            return
        if not target.parent.is_dir():
            target.parent.mkdir(mode=0o700, exist_ok=True)
            files.sync(self._objects)
        files.put_in_place(self.part, target)

    # --- manifests -------------------------------------------------------------------------------

    def numbers(self) -> list[int]:
        """The numbers of the backups, the oldest first."""
        found = self._manifests.glob("*.json") if self._manifests.is_dir() else ()
        return sorted(int(path.stem) for path in found if path.stem.isdigit())

    def write(self, manifest: BackupManifest) -> int:
        """The backup is whole from now on; its number."""
        number = max(self.numbers(), default=0) + 1
        body = manifest.model_dump(mode="json")
        files.write_json(self._manifest(number), {"sha256": _hash(body), "backup": body})
        return number

    def read(self, number: int | None = None) -> tuple[int, BackupManifest]:
        """A backup by its number, else the newest; raises `BackupUnusable`."""
        known = self.numbers()
        if not known:
            raise BackupUnusable(f"{self.root}: holds no backup; make one with 'palorad backup'")
        chosen = known[-1] if number is None else number
        if chosen not in known:
            listed = ", ".join(map(str, known[-10:]))
            raise BackupUnusable(f"{self.root}: holds no backup {chosen}, but {listed}")
        path = self._manifest(chosen)
        try:
            stored = json.loads(path.read_text())
            if stored["sha256"] != _hash(stored["backup"]):
                raise BackupUnusable(f"{path}: has been changed; {ANOTHER}")
            return chosen, BackupManifest.model_validate(stored["backup"])
        except (ValueError, KeyError, TypeError) as error:
            raise BackupUnusable(f"{path}: is no manifest of this palorad; {ANOTHER}") from error

    def forget(self, keep: int) -> int:
        """Delete all backups but the newest `keep`, and every content that none of these needs;
        how many backups were deleted."""
        numbers = self.numbers()
        needed = {
            entry.sha256
            for number in numbers[-keep:]
            for entry in self.read(number)[1].files.values()
        }
        for number in numbers[:-keep]:
            self._manifest(number).unlink()
        files.sync(self._manifests)
        for folder in self._objects.iterdir():
            for path in folder.iterdir():
                if path.name not in needed:
                    path.unlink()
        return len(numbers[:-keep])

    def _manifest(self, number: int) -> Path:
        return self._manifests / f"{number:06}.json"


def copied(source: Path, target: Path) -> str:
    """Copy a regular file, durably, but for the entry in its folder; the hash of what was copied.

    Raises `OSError`, also where `source` is a symbolic link.
    """
    digest = hashlib.sha256()
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb") as out:
        while block := stream.read(BLOCK):
            digest.update(block)
            out.write(block)
        files.sync_stream(out)
    return digest.hexdigest()


def _hash(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
