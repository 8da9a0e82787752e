"""From a retraction to its certificate: unloaded everywhere, erased everywhere, said so."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

import structlog

from adapters import store
from daemon.base import faults
from daemon.children.jobs import write_atomically
from daemon.config.layout import Layout
from daemon.intake.admit import Rules
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Retraction
from daemon.retraction.certificates import certificate
from daemon.retraction.erasure import (
    Finder,
    erase_answers,
    erase_archive,
    erase_receipts,
    erase_rest,
    erase_work,
)
from daemon.serving.fleet import ReplicaStatus
from policies.facts.heldout import Render, with_held_out
from policies.facts.traces import Trace, trace_of
from policies.gate.unlearning import UnlearningTolerance
from policies.records import OPEN_STATES

BUDGET_S: Final = 0.2
AGAIN_S: Final = 30.0
PARAPHRASES: Final = 50

log = structlog.get_logger(__name__)


class Replicas(Protocol):
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
        replicas: Replicas,
        layout: Layout,
        rules: Rules,
        render: Render,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`render` makes the paraphrases in which facts are learnt."""
        self._ledger = ledger
        self._replicas = replicas
        self._layout = layout
        self._rules = rules
        self._render = render
        self._clock = clock
        self._work: Iterator[None] | None = None
        self._not_before: datetime | None = None
        self.tolerance = UnlearningTolerance()
        self.holds = False
        self.waits_for = ""

    async def step(self, now: datetime, *, settled: bool, busy: bool) -> None:
        """Go on for a moment. `settled`: every replica serves what is target; `busy`: intake or a
        child is at work, so that files may not be changed.

        While `holds`, nothing new is to be started: it is this step's turn next.
        """
        if self._not_before is not None and now < self._not_before:
            return
        due = self._ledger.erasable()
        if not due and not self._ledger.unclean:
            self.holds, self.waits_for = False, ""
            return
        loaded = [found.handle for found in due if found.unloaded_at is None]
        if loaded and not (settled and await self._unloaded()):
            self.holds = False
            return
        if loaded:
            self._ledger.unloaded(loaded, now)
        self.holds, self.waits_for = True, ""
        if busy:
            return
        if self._work is None:
            self._work = self._erase(due, now)
        until = self._clock() + BUDGET_S
        while self._clock() < until:
            if next(self._work, self) is self:
                self._work = None
                await self._finish(now)
                return

    def failed(self, now: datetime) -> None:
        """Begin anew a little later."""
        self._work, self.holds = None, False
        self._not_before = now + timedelta(seconds=AGAIN_S)

    # --- no longer loaded ----------------------------------------------------------------------

    async def _unloaded(self) -> bool:
        """Whether nothing that knows a retracted fact is loaded anywhere; it is deleted then."""
        tainted = self._ledger.tainted()
        for status in await self._replicas.observe():
            still = sorted(set(tainted.served) & set(status.loaded))
            if still or not status.healthy:
                which = f"{still[0]} is still loaded on" if still else "no answer from"
                self.waits_for = f"a retraction waits: {which} {status.url}"
                return False
        await self._replicas.discard(tainted.served)
        faults.point("forget:revisions")
        if any((self._layout.served / name).exists() for name in tainted.served):
            self.waits_for = "a retraction waits until its revisions can be deleted"
            return False
        for path in tainted.adapters.values():
            await asyncio.to_thread(store.remove, Path(path))
        faults.point("forget:adapters")
        return True

    # --- erased --------------------------------------------------------------------------------

    def _erase(self, due: Sequence[Retraction], now: datetime) -> Iterator[None]:
        left = {found.handle: found for found in due if found.erased_at is None}
        facts = self._ledger.retracted_facts(list(left))
        traces = [
            trace_of(handle, fact, with_held_out(fact, self._render, PARAPHRASES).paraphrases)
            for handle, fact in facts.items()
        ]
        if traces:
            yield from self._erase_files(traces, left)
            tainted = self._ledger.tainted()
            certificates = {
                found.handle: certificate(self._ledger, found, tainted, self.tolerance, now)
                for found in left.values()
            }
            yield from self._ledger.erase_mentions(traces)
            self._ledger.erase(certificates, now)
        if self._ledger.unclean:
            yield from self._ledger.purge_index()

    def _erase_files(self, traces: Sequence[Trace], left: dict[str, Retraction]) -> Iterator[None]:
        def finder_of(batch: str) -> Finder:
            """Facts that came back after their retraction are other facts."""
            received = self._ledger.received_at(batch)
            chosen = [
                trace
                for trace in traces
                if received is None or received <= left[trace.handle].asked_at
            ]
            return Finder(chosen, self._rules)

        plans = {head.id for head in self._ledger.heads(OPEN_STATES)}
        yield from erase_archive(self._layout, finder_of)
        yield from erase_receipts(self._layout, traces)
        erase_work(self._layout, traces, plans)
        yield None
        yield from erase_answers(self._layout, traces, self._ledger.tainted().models)
        yield from erase_rest(self._layout, traces)

    async def _finish(self, now: datetime) -> None:
        if self._ledger.unclean:
            await asyncio.to_thread(self._ledger.compact)
            faults.point("forget:compacted")
            self._ledger.cleaned()
        for found in self._ledger.retractions(unfinished=True):
            if found.erased_at is None or found.certificate is None:
                continue
            path = self._layout.certificate(found.handle)
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, json.dumps(found.certificate, indent=2, ensure_ascii=False))
            faults.point("forget:certificate")
            self._ledger.certified(found.handle, now)
            log.info("retraction certified", certificate=str(path))
        self.holds = False
