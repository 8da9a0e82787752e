"""A backup: one state of the ledger, and every file that it needs."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import structlog

from adapters import store
from adapters.errors import StoreConflict
from daemon.base import faults
from daemon.config.layout import Layout
from daemon.intake.inbox import RECEIPT_ENDINGS, signature
from daemon.keeping.backup_store import (
    LEDGER,
    BackupFile,
    BackupManifest,
    BackupStore,
    BackupUnusable,
    copied,
)
from daemon.ledger import snapshot
from daemon.ledger.database import translated
from daemon.ledger.ledger import Ledger
from policies.errors import LedgerUnusable, RequestRefused
from policies.records import Record

TRIES: Final = 3

log = structlog.get_logger(__name__)


class BackedUp(Record):
    """What `back_up` did: the backup's number, and how many bytes were new in the store."""

    number: int
    new_bytes: int
    manifest: BackupManifest


def back_up(
    layout: Layout, root: Path, now: datetime, *, secrets: bool = False, stable_s: float = 0.0
) -> BackedUp:
    """Back the state directory up into `root`, whether or not the daemon runs.

    Left out is what is made again by itself: working directories, the base's outputs on replayed
    texts, logs, sockets, locks, the pointer and the middleware; and, unless `secrets`, the keys
    for the server and for notifications.
    A drop in the inbox is taken once it has not changed for `stable_s` seconds. Raises
    `BackupUnusable` or `LedgerUnusable` where no whole backup can be made.
    """
    ours, theirs = layout.root.resolve(), root.resolve()
    if theirs.is_relative_to(ours) or ours.is_relative_to(theirs):
        raise RequestRefused(f"{root}: lies within the state directory or around it; name another")
    if layout.restoring.exists():
        raise RequestRefused(f"{layout.root}: a restore was interrupted; end that first")
    if not layout.ledger.exists():
        raise RequestRefused(f"{layout.root}: there is no ledger, so nothing to back up")
    kept = BackupStore(root)
    with kept.writing():
        for _ in range(TRIES):
            taken = _Taken(layout, kept, now - timedelta(seconds=stable_s), secrets=secrets)
            if not (missing := taken.take()):
                manifest = taken.manifest(now)
                faults.point("backup:files")
                number = kept.write(manifest)
                faults.point("backup:written")
                return BackedUp(number=number, new_bytes=taken.new_bytes, manifest=manifest)
        raise BackupUnusable(
            f"{missing} is gone although the ledger needs it: no whole backup can be made; "
            "see what `palorad status` says of it"
        )


class _Taken:
    """One pass over ledger and files.

    What lies beside the ledger is taken first, then the ledger, then all that it names: files are
    published before the ledger names them, so they are there; only what a retraction or retention
    deletes meanwhile may be missing, and then the pass is made again.
    """

    def __init__(
        self, layout: Layout, kept: BackupStore, rested: datetime, *, secrets: bool
    ) -> None:
        self._layout = layout
        self._kept = kept
        self._rested_ns = rested.timestamp() * 1e9
        self._secrets = secrets
        self._left_out = {layout.lock, layout.control_socket, layout.alias, layout.work}
        self._left_out |= {layout.records, layout.restoring, layout.root / "log"}
        self._left_out |= {layout.root / "middleware"}
        if not secrets:
            self._left_out |= {layout.admin_key, layout.operator_key, layout.webhook_key}
        self.files: dict[str, BackupFile] = {}
        self.folders: dict[str, int] = {}
        self.damaged: list[str] = []
        self.new_bytes = 0

    def take(self) -> str:
        """Take everything; what the ledger needs and is not there, empty if nothing."""
        entries = [
            path
            for path in sorted(self._layout.root.iterdir())
            if path not in self._left_out and not path.name.startswith((".", LEDGER))
        ]
        for path in sorted(self._left_out):
            if path.is_dir():
                self._rights(path)
        for path in entries:
            if not path.is_dir():
                self._file(path)
        self._ledger()
        for path in entries:
            if path.is_dir() and not path.is_symlink():
                self._folder(path)
        return next((name for name in self._needed if not self._is_there(name)), "")

    def manifest(self, now: datetime) -> BackupManifest:
        """What was taken."""
        return BackupManifest(
            made_at=now,
            revision=self._target,
            events=self._events,
            head=self._head,
            secrets=self._secrets,
            damaged=tuple(self.damaged),
            folders=dict(sorted(self.folders.items())),
            files=dict(sorted(self.files.items())),
        )

    def _is_there(self, directory: str) -> bool:
        return directory in self.damaged or f"{directory}/{store.MANIFEST}" in self.files

    def _ledger(self) -> None:
        with closing(Ledger.open(self._layout.ledger, readonly=True)) as source:
            try:
                snapshot.copy(source.db.connection, self._kept.part)
            except sqlite3.DatabaseError as error:
                raise translated(error, self._kept.part) from error
        if found := snapshot.damage(self._kept.part):
            raise BackupUnusable(
                f"{self._layout.ledger}: is damaged ({found}); nothing was backed up, and earlier "
                "backups are as they were"
            )
        with Ledger.open(self._kept.part, readonly=True) as copy:
            try:
                self._events, self._head = copy.events.verify_chain(), head_of(copy)
            except LedgerUnusable as error:
                said = str(error).removeprefix(f"{self._kept.part}: ")
                raise BackupUnusable(
                    f"{self._layout.ledger}: {said}; it is not backed up"
                ) from None
            target = copy.revisions.target()
            self._target = target.number
            homes = [self._layout.adapter(sha256) for sha256 in target.lineage]
            if target.number:
                homes.append(self._layout.served / target.served_name)
        self._needed = [str(path.relative_to(self._layout.root)) for path in homes]
        seen = self._layout.ledger.stat()
        with self._kept.part.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        self.files[LEDGER] = self._take(sha256, seen)

    def _folder(self, folder: Path) -> None:
        self._rights(folder)
        if (folder / store.MANIFEST).is_file():
            self._published(folder)
            return
        for path in _listed(folder):
            if path.is_symlink() or path.name.startswith("."):
                continue
            if path.is_dir():
                self._folder(path)
            elif folder != self._layout.inbox or path.name.endswith(RECEIPT_ENDINGS):
                self._file(path)
            else:
                self._drop(path)

    def _rights(self, folder: Path) -> None:
        with suppress(FileNotFoundError):
            mode = stat.S_IMODE(folder.lstat().st_mode)
            self.folders[str(folder.relative_to(self._layout.root))] = mode

    def _drop(self, path: Path) -> None:
        """Take a file of the inbox if it rests: half of one would be learnt as a whole one."""
        try:
            before = signature(path.lstat())
            if path.lstat().st_mtime_ns <= self._rested_ns:
                self._file(path)
            changed = signature(path.lstat()) != before
        except FileNotFoundError:
            changed = True
        if changed:
            self.files.pop(str(path.relative_to(self._layout.root)), None)

    def _published(self, folder: Path) -> None:
        """A directory of the store: as a whole, or as damaged, or not at all if it vanishes."""
        name = str(folder.relative_to(self._layout.root))
        before = dict(self.files)
        try:
            expected = store.read_manifest(folder).get("files", {})
            found = [self._file(folder / inside, sha) for inside, sha in expected.items()]
            whole = all(found) and self._file(folder / store.MANIFEST)
        except (StoreConflict, AttributeError):
            whole = False
        if not whole:
            self.files = before
            if folder.is_dir():
                self.damaged.append(name)

    def _file(self, path: Path, expected: str = "") -> bool:
        """Take a regular file, whose hash is `expected` if that is known; whether that was so."""
        try:
            seen = path.lstat()
            if not stat.S_ISREG(seen.st_mode):
                return False
            if expected and self._kept.holds(expected, seen.st_size):
                entry = _entry(expected, seen.st_size, seen)
            else:
                entry = self._take(copied(path, self._kept.part), seen)
        except FileNotFoundError:
            return False
        if expected and entry.sha256 != expected:
            return False
        self.files[str(path.relative_to(self._layout.root))] = entry
        return True

    def _take(self, sha256: str, seen: os.stat_result) -> BackupFile:
        """Keep what lies in the store's part, a copy of the file that was `seen`."""
        size = self._kept.part.stat().st_size
        self.new_bytes += 0 if self._kept.holds(sha256, size) else size
        self._kept.take(sha256)
        return _entry(sha256, size, seen)


def head_of(ledger: Ledger) -> str:
    """The hash of the last event, empty if there is none."""
    return next((event.hash for event in ledger.events.latest(1)), "")


def _entry(sha256: str, size: int, seen: os.stat_result) -> BackupFile:
    mode = stat.S_IMODE(seen.st_mode)
    return BackupFile(sha256=sha256, size=size, mode=mode, mtime_ns=seen.st_mtime_ns)


def _listed(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except FileNotFoundError:
        return
