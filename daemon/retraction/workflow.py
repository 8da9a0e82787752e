"""From a retraction to its certificate: unloaded everywhere, erased everywhere, said so."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

import structlog

from adapters import files, store
from daemon.base import faults
from daemon.config.layout import Layout
from daemon.intake.admit import Rules
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Retraction, Tainted
from daemon.retraction.certificates import certificate
from daemon.retraction.erasure import (
    HALF,
    Finder,
    erase_answers,
    erase_archive,
    erase_claimed,
    erase_receipts,
    erase_rest,
    erase_work,
    held_by,
    remaining,
)
from daemon.serving.replica_status import ReplicaStatus
from policies.facts.paraphrases import every_paraphrase
from policies.facts.traces import Trace, trace_of
from policies.gate.unlearning import UnlearningTolerance
from policies.records import OPEN_STATES

BUDGET_S: Final = 0.2
AGAIN_S: Final = 30.0

log = structlog.get_logger(__name__)


class RevocableReplicas(Protocol):
    """What is needed of `daemon.serving.fleet.Fleet`."""

    async def observe(self) -> tuple[ReplicaStatus, ...]:
        """Ask every replica what it has loaded."""
        ...

    async def discard(self, names: Sequence[str]) -> tuple[str, ...]:
        """Delete revisions that no replica has loaded."""
        ...


class Forgetting:
    """Carries retracted facts to their end, in the order in which each step is durable.

    No longer target → unloaded and deleted → erased from files → erased from the ledger → ledger
    rewritten → certified. The ledger is last to lose the text, so that whatever was interrupted is
    done again from what it says.
    """

    def __init__(
        self,
        ledger: Ledger,
        replicas: RevocableReplicas,
        layout: Layout,
        rules: Rules,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._replicas = replicas
        self._layout = layout
        self._rules = rules
        self._clock = clock
        self._work: Iterator[Path | None] | None = None
        self._not_before: float | None = None
        self.tolerance = UnlearningTolerance()
        self.holds = False
        self.waits_for = self.under_way = ""

    async def step(self, now: datetime, *, settled: bool, busy: bool) -> None:
        """Go on for a moment. `settled`: every replica serves what is target; `busy`: intake or a
        child is at work, so that files may not be changed.

        While `holds`, nothing new is to be started: it is this step's turn next. What cannot be
        deleted or rewritten leaves the retraction as it is, to be tried again a little later;
        `waits_for` says why; `under_way` says what is being erased.
        """
        if self._not_before is not None and self._clock() < self._not_before:
            return
        try:
            await self._go_on(now, settled=settled, busy=busy)
        except OSError as error:
            self.failed()
            which, why = error.filename or self._layout.root, error.strerror or str(error)
            self.waits_for = f"a retraction waits: {which} cannot be erased: {why}"
            log.warning("retraction waits", path=str(which), reason=why, again_in_s=AGAIN_S)
        except Exception:
            self.failed()
            raise

    async def _go_on(self, now: datetime, *, settled: bool, busy: bool) -> None:
        due = self._ledger.retractions.erasable()
        if not due and not self._ledger.erasure.unclean:
            self.holds, self.waits_for, self.under_way = False, "", ""
            return
        loaded = [found.handle for found in due if found.unloaded_at is None]
        if loaded and not (settled and await self._unloaded(due)):
            self.holds = False
            return
        if loaded:
            self._ledger.retractions.unloaded(loaded, now)
        self.holds = True
        if busy:
            return
        if self._work is None:
            due = self._ledger.retractions.erasable()
            await self._delete(self._barred(due))
            self._work = self._erase(due, now)
        until = self._clock() + BUDGET_S
        while self._clock() < until:
            at = next(self._work, self)
            if at is self:
                self._work = None
                await self._finish(now)
                return
            if isinstance(at, Path):
                self.waits_for = ""
                self.under_way = f"a retraction is being erased: {at} is being read"

    def failed(self) -> None:
        """Begin anew a little later."""
        self._work, self.holds, self.under_way = None, False, ""
        self._not_before = self._clock() + AGAIN_S

    # --- no longer loaded ----------------------------------------------------------------------

    def _barred(self, due: Iterable[Retraction]) -> Tainted:
        return self._ledger.retractions.tainted([found.handle for found in due])

    async def _unloaded(self, due: Sequence[Retraction]) -> bool:
        """Whether nothing that knows these facts is loaded anywhere; it is deleted then."""
        tainted = self._barred(due)
        for status in await self._replicas.observe():
            still = sorted(set(tainted.served) & set(status.loaded))
            if still or not status.healthy:
                which = f"{still[0]} is still loaded on" if still else "no answer from"
                self.waits_for = f"a retraction waits: {which} {status.url}"
                return False
        await self._delete(tainted)
        return True

    async def _delete(self, tainted: Tainted) -> None:
        """Delete what knows a retracted fact; raises `OSError` for what lies there afterwards."""
        paths = held_by(self._layout, tainted)
        if not remaining(paths):
            # They may have been deleted by a process that was killed before that was on the disk.
            for parent in {path.parent for path in paths if path.parent.is_dir()}:
                files.sync(parent)
            return
        await self._replicas.discard(tainted.served)
        faults.point("forget:revisions")
        served = [path for path in paths if path.parent == self._layout.served]
        for path in paths:
            if path not in served or path.name.startswith(HALF):
                await asyncio.to_thread(store.remove, path)
        faults.point("forget:adapters")
        self._require_gone(paths)

    def _require_gone(self, paths: Sequence[Path]) -> None:
        """Raises `OSError` with the first of the paths at which something lies still."""
        for path in remaining(paths):
            raise OSError(errno.EBUSY, "it is still there after its deletion", os.fspath(path))

    # --- erased --------------------------------------------------------------------------------

    def _erase(self, due: Sequence[Retraction], now: datetime) -> Iterator[Path | None]:
        left = {found.handle: found for found in due if found.erased_at is None}
        facts = self._ledger.retractions.facts(list(left))
        further = self._ledger.paraphrases.of([fact.id for fact in facts.values()])
        traces = [
            trace_of(handle, fact, every_paraphrase(fact, further.get(fact.id, ())))
            for handle, fact in facts.items()
        ]
        if traces:
            yield from self._erase_files(traces, left, now)
            tainted = self._barred(left.values())
            paths = held_by(self._layout, tainted)
            self._require_gone(paths)
            certificates = {
                found.handle: certificate(
                    self._ledger, found, tainted, self.tolerance, now, deleted=not remaining(paths)
                )
                for found in left.values()
            }
            yield from self._ledger.erasure.erase_mentions(traces, now)
            self._ledger.erasure.erase(certificates, now)
        if self._ledger.erasure.unclean:
            yield from self._ledger.erasure.purge_index()

    def _erase_files(
        self, traces: Sequence[Trace], left: dict[str, Retraction], now: datetime
    ) -> Iterator[Path]:
        def finder_of(batch: str) -> Finder:
            """Facts that came back after their retraction are other facts."""
            place = self._ledger.batches.place_of(batch)
            chosen = [
                trace for trace in traces if place is None or place <= left[trace.handle].last_batch
            ]
            return Finder(chosen, self._rules)

        plans = {head.id for head in self._ledger.plans.heads(OPEN_STATES)}
        yield from erase_archive(
            self._layout,
            finder_of,
            lambda batch, sha: self._ledger.events.archive_erased(batch, sha, now),
        )
        yield from erase_receipts(self._layout, traces)
        yield from erase_claimed(self._layout, Finder(traces, self._rules))
        yield from erase_work(self._layout, traces, plans)
        yield from erase_answers(self._layout, traces, self._barred(left.values()).models)
        yield from erase_rest(self._layout, traces)

    async def _finish(self, now: datetime) -> None:
        if self._ledger.erasure.unclean:
            with self._ledger.db.impatient():
                await asyncio.to_thread(self._ledger.erasure.compact)
            faults.point("forget:compacted")
            self._ledger.erasure.cleaned()
        erased = [
            r for r in self._ledger.retractions.all(unfinished=True) if r.erased_at is not None
        ]
        self._require_gone(held_by(self._layout, self._barred(erased)))
        for found in erased:
            path = self._layout.certificate(found.handle)
            files.make_folder(path.parent)
            files.write_text(path, json.dumps(found.certificate, indent=2, ensure_ascii=False))
            faults.point("forget:certificate")
            self._ledger.retractions.certified(found.handle, now)
            log.info("retraction certified", certificate=str(path))
        self.holds, self.waits_for, self.under_way = False, "", ""
