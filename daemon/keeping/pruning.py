"""Removes what need not be kept: recorded first, a few at a time, never while it is needed."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog

from adapters import files, store
from daemon.base import faults
from daemon.children.jobs import held
from daemon.config.layout import Layout
from daemon.keeping.inventory import path_of, to_remove
from daemon.ledger.ledger import Ledger
from policies.errors import PaloradError
from policies.records import Record
from policies.retention import KeepLimits, Removal, StoredKind

SLICE: Final = 20
TRIES: Final = 20
GRAVE: Final = ".tmp-gone-"

log = structlog.get_logger(__name__)


class NotRemoved(PaloradError):
    """Something that need not be kept cannot be deleted."""


class Pruned(Record):
    """What one run has removed, and how many bytes that were."""

    removed: int = 0
    bytes: int = 0


class Pruner:
    """Decides in a thread, records in the loop, deletes in a thread.

    What was decided holds while no event has come since: a rollback, a plan or a retraction that
    comes in between has everything looked at again. Killed between record and deletion, the next
    run deletes what is left.
    """

    def __init__(
        self,
        ledger: Ledger,
        layout: Layout,
        limits: KeepLimits,
        serving: Callable[[], Collection[str]],
    ) -> None:
        """`serving` names what replicas have loaded."""
        self._ledger = ledger
        self._layout = layout
        self._limits = limits
        self._serving = serving
        self._one_at_a_time = asyncio.Lock()

    async def found(self, now: datetime) -> tuple[Removal, ...]:
        """What may go now."""
        return (await self._look(now))[1]

    async def prune(self, now: datetime) -> Pruned:
        """Remove what may go; raises `NotRemoved` in the end for what could not be deleted."""
        async with self._one_at_a_time:
            return await self._prune(now)

    async def _prune(self, now: datetime) -> Pruned:
        done, failed, tries = Pruned(), dict[tuple[StoredKind, str], OSError](), TRIES
        while tries:
            head, found = await self._look(now)
            left = [one for one in found if (one.kind, one.name) not in failed]
            if not left:
                break
            tries -= 1
            for first in range(0, len(left), SLICE):
                some = left[first : first + SLICE]
                if self._ledger.removals.head != head:
                    break
                self._ledger.removals.record(some, now)
                head, tries = self._ledger.removals.head, TRIES
                faults.point("prune:recorded")
                failed |= await asyncio.to_thread(self._remove, some)
                gone = [one for one in some if (one.kind, one.name) not in failed]
                done = Pruned(
                    removed=done.removed + len(gone),
                    bytes=done.bytes + sum(one.bytes for one in gone),
                )
        log.info("pruned", removed=done.removed, bytes=done.bytes, failed=len(failed))
        for (kind, name), error in failed.items():
            raise NotRemoved(
                f"{path_of(self._layout, kind, name)} need not be kept and cannot be deleted: "
                f"{error.strerror}; correct its rights"
            )
        return done

    async def _look(self, now: datetime) -> tuple[int, tuple[Removal, ...]]:
        """What may go, and the number of the last event before it was looked for."""
        serving = frozenset(self._serving())

        def look() -> tuple[int, tuple[Removal, ...]]:
            with Ledger.open(self._ledger.db.path, readonly=True) as reader:
                reader.db.read_through()
                head = reader.removals.head
                return head, to_remove(reader, self._layout, self._limits, serving, now)

        return await asyncio.to_thread(look)

    def _remove(self, some: Sequence[Removal]) -> dict[tuple[StoredKind, str], OSError]:
        """Delete a few; those that cannot be deleted, each with the reason."""
        failed = {}
        for one in some:
            try:
                _delete(path_of(self._layout, one.kind, one.name), one.kind)
            except OSError as error:
                failed[one.kind, one.name] = error
            faults.point("prune:removed")
        return failed


def _delete(path: Path, kind: StoredKind) -> None:
    """Gone already is success; half a directory never stands under a published name."""
    if kind is StoredKind.WORK and held(path):
        raise OSError(errno.EBUSY, "a child still works in it", os.fspath(path))
    if kind in (StoredKind.ADAPTER, StoredKind.REVISION) and path.exists():
        grave = path.with_name(f"{GRAVE}{path.name}")
        store.remove(grave)
        path.rename(grave)
        path = grave
    if path.is_dir() and not path.is_symlink():
        store.remove(path)
    elif path.exists():
        path.unlink()
        files.sync(path.parent)
