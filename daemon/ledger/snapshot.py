"""A consistent copy of a ledger while the daemon goes on writing it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from adapters import files

PAGES: Final = 1024
PAUSE_S: Final = 0.002
PATIENCE_S: Final = 20.0


class _TooBusyError(Exception):
    """The writer has made the copy begin again for too long."""


def copy(
    source: sqlite3.Connection,
    to: Path,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Write the database behind `source` to the new file `to`, durably, by SQLite's backup API.

    A piece is copied at a time, so that the writer is never held up for long; whatever it commits
    meanwhile has the copy begin again. After `PATIENCE_S` the copy is made in one piece.
    """
    until = clock() + PATIENCE_S

    def pause(_status: int, left: int, _pages: int) -> None:
        if left and clock() > until:
            raise _TooBusyError
        sleep(PAUSE_S)

    to.unlink(missing_ok=True)
    with closing(sqlite3.connect(to)) as target:
        try:
            source.backup(target, pages=PAGES, progress=pause, sleep=PAUSE_S)
        except _TooBusyError:
            source.backup(target)
        # One file by itself, without a log beside it.
        target.execute("PRAGMA journal_mode=DELETE")
    files.sync(to)
    files.sync(to.parent)


def damage(path: Path) -> str:
    """What SQLite finds wrong within a database file; empty if nothing."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as opened:
        try:
            (said,) = opened.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            return str(error)
    return "" if said == "ok" else str(said)
