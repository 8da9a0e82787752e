"""A backup becomes a state directory: checked byte by byte, gathered beside, then put in place."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

from adapters import files, store
from daemon.base import faults
from daemon.config.layout import Layout
from daemon.keeping.backup import head_of
from daemon.keeping.backup_store import (
    ANOTHER,
    LEDGER,
    BackupFile,
    BackupManifest,
    BackupStore,
    BackupUnusable,
    copied,
)
from daemon.ledger.ledger import Ledger
from policies.errors import RequestRefused

WHOLE: Final = ".whole"
MOVED: Final = ".moved"


def check(root: Path, number: int | None = None) -> tuple[int, BackupManifest]:
    """Compare every byte of a backup with its manifest; raises `BackupUnusable`."""
    kept = BackupStore(root)
    chosen, manifest = kept.read(number)
    for path, entry in manifest.files.items():
        with _found(kept, path, entry), kept.path(entry.sha256).open("rb") as stream:
            _require(kept, path, entry, hashlib.file_digest(stream, "sha256").hexdigest())
    return chosen, manifest


def restore(
    layout: Layout, root: Path, number: int | None = None, aside: Path | None = None
) -> tuple[int, BackupManifest]:
    """Put a backup, the newest if none is named, in the place of the state directory.

    What is there is moved to `aside`; a key stays if the backup has none. Nothing is changed
    before the backup is known to be whole. Killed at any point, the same call goes on, and until
    then no daemon starts there. The caller holds the lock of the state directory. Raises
    `BackupUnusable`, `LedgerUnusable`, or `RequestRefused`.
    """
    kept = BackupStore(root)
    chosen, manifest = kept.read(number)
    gathered = layout.restoring
    named = f"{root.resolve()} {chosen} {manifest.head}\n"
    if not _says(gathered / WHOLE, named):
        store.remove(gathered)
        _require_room(layout, manifest, aside)
        try:
            _gather(kept, manifest, gathered)
        except BaseException:
            store.remove(gathered)
            raise
        files.write_text(gathered / WHOLE, named)
    _hand_over(layout)
    faults.point("restore:gathered")
    if not (gathered / MOVED).exists():
        _put_aside(layout, manifest, aside)
        files.write_text(gathered / MOVED, "")
    faults.point("restore:aside")
    _put_in_place(layout)
    store.remove(gathered)
    faults.point("restore:done")
    return chosen, manifest


def _hand_over(layout: Layout) -> None:
    """What root restores belongs to whoever has the state directory, and so has the lock."""
    if os.geteuid() == 0:
        owner = layout.root.stat()
        for path in (layout.restoring, *layout.restoring.rglob("*"), layout.lock):
            if path.exists():
                os.chown(path, owner.st_uid, owner.st_gid)


def _says(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except FileNotFoundError:
        return False


def _gather(kept: BackupStore, manifest: BackupManifest, gathered: Path) -> None:
    gathered.mkdir(mode=0o700)
    for path in manifest.folders:
        _require_below(kept, path)
        (gathered / path).mkdir(parents=True, exist_ok=True)
    for path, entry in manifest.files.items():
        target = gathered / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with _found(kept, path, entry):
            _require(kept, path, entry, copied(kept.path(entry.sha256), target))
        target.chmod(entry.mode)
        os.utime(target, ns=(entry.mtime_ns, entry.mtime_ns))
    for path, mode in manifest.folders.items():
        (gathered / path).chmod(mode)
    for folder in [gathered, *(path for path in gathered.rglob("*") if path.is_dir())]:
        files.sync(folder)
    files.sync(gathered.parent)
    if LEDGER not in manifest.files:
        raise BackupUnusable(f"{kept.root}: holds no ledger; {ANOTHER}")
    with Ledger.open(gathered / LEDGER, readonly=True) as ledger:
        if (ledger.events.verify_chain(), head_of(ledger)) != (manifest.events, manifest.head):
            raise BackupUnusable(f"{kept.root}: its ledger is not that of its manifest; {ANOTHER}")


@contextmanager
def _found(kept: BackupStore, path: str, entry: BackupFile) -> Iterator[None]:
    """Read one file of a backup; raises `BackupUnusable` where it is missing."""
    _require_below(kept, path)
    try:
        yield
    except FileNotFoundError:
        raise BackupUnusable(f"{kept.root}: is incomplete: {path} is missing; {ANOTHER}") from None


def _require_below(kept: BackupStore, path: str) -> None:
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise BackupUnusable(f"{kept.root}: {path} is no path of a state directory; {ANOTHER}")


def _require(kept: BackupStore, path: str, entry: BackupFile, sha256: str) -> None:
    if sha256 != entry.sha256:
        raise BackupUnusable(
            f"{kept.root}: is damaged: {path} is not what was backed up "
            f"({kept.path(entry.sha256)}); {ANOTHER}"
        )


def _present(layout: Layout, manifest: BackupManifest) -> Iterator[Path]:
    """What lies in the state directory and would be in the way."""
    stays = {layout.lock, layout.restoring}
    stays |= {
        key
        for key in (layout.admin_key, layout.operator_key, layout.webhook_key)
        if key.name not in manifest.files
    }
    yield from (path for path in sorted(layout.root.iterdir()) if path not in stays)


def _require_room(layout: Layout, manifest: BackupManifest, aside: Path | None) -> None:
    present = list(_present(layout, manifest))
    if present and aside is None:
        raise RequestRefused(
            f"{layout.root}: is not empty; say with --aside where what is there is to be moved"
        )
    if aside is not None and aside.resolve().is_relative_to(layout.root.resolve()):
        raise RequestRefused(f"{aside}: lies within the state directory; name one outside")
    for path in present:
        if aside is not None and os.path.lexists(aside / path.name):
            raise RequestRefused(f"{aside / path.name}: is there already; name an empty directory")


def _put_aside(layout: Layout, manifest: BackupManifest, aside: Path | None) -> None:
    _require_room(layout, manifest, aside)
    if aside is None:
        return
    aside.mkdir(parents=True, exist_ok=True)
    for path in _present(layout, manifest):
        try:
            path.rename(aside / path.name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise RequestRefused(
                f"{aside}: lies on another file system; name a directory on that of {layout.root}"
            ) from None
    files.sync(aside)
    files.sync(layout.root)


def _put_in_place(layout: Layout) -> None:
    """The ledger comes last: where it lies, all that it names does."""
    entries = [path for path in layout.restoring.iterdir() if path.name not in (WHOLE, MOVED)]
    for path in sorted(entries, key=lambda path: (path.name == LEDGER, path.name)):
        if path.is_file() and path.name == LEDGER:
            files.sync(layout.root)
        path.rename(layout.root / path.name)
    files.sync(layout.root)
