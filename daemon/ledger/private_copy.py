"""The ledger as it is at one moment, copied away so that long reading holds up no writer."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from daemon.ledger.database import Database, translated
from policies.errors import LedgerBusy, LedgerUnusable

STEP_PAGES: Final = 4096
RESTARTS: Final = 3
PATIENCE_S: Final = 60.0
_NAP_S: Final = 0.05


class _Restarted(Exception):
    """Others wrote between the pieces more often than is worth waiting for."""


@contextmanager
def private_copy(
    path: Path, *, alone: bool = False, clock: Callable[[], float] = time.monotonic
) -> Iterator[Database]:
    """A private copy, gone afterwards; `alone`: nobody writes, so a journal left by a crash may be
    rolled back. Raises `LedgerUnusable` (also for a ledger of another schema) and `LedgerBusy`.

    It is read in pieces, between which the writer goes on; one that is written all the time is
    read in one piece in the end.
    """
    try:
        source = Database.open(path, readonly=True)
    except LedgerUnusable:
        if not (alone and path.with_name(f"{path.name}-journal").exists()):
            raise
        source = Database.open(path)
    with closing(source), closing(sqlite3.connect("")) as target:
        target.execute("PRAGMA journal_mode=OFF")
        try:
            _copy(source.connection, target, path, clock)
        except sqlite3.DatabaseError as error:
            raise translated(error, path) from error
        yield Database.over(target, path)


def _copy(
    source: sqlite3.Connection, target: sqlite3.Connection, path: Path, clock: Callable[[], float]
) -> None:
    until, before, restarts = clock() + PATIENCE_S, -1, 0

    def watch(_status: int, remaining: int, _total: int) -> None:
        nonlocal before, restarts
        restarts += 0 <= before < remaining
        before = remaining
        if clock() > until:
            raise LedgerBusy(f"{path}: in use by another process for more than {PATIENCE_S:g} s")
        if restarts > RESTARTS:
            raise _Restarted

    try:
        source.backup(target, pages=STEP_PAGES, progress=watch, sleep=_NAP_S)
    except _Restarted:
        restarts, before = -1, -1
        source.backup(target, pages=-1, progress=watch, sleep=_NAP_S)
