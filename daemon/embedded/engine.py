"""A thread that decodes: one growing and shrinking batch for each adapter, adapters in turn."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path

from adapters.generate import Decoding, Generation, Generator, Request, Token
from policies.errors import PaloradError, ServerUnusable

ROWS = 96
BATCHES_AT_ONCE = 4
# Requests that come together are to share a batch: a queue that has grown since the last look is
# left to grow, and so is one of which little would join beside the batch under way, though not
# beyond the limit.
GATHER_S = 0.003
GATHER_LIMIT_S = 0.1
JOIN_SHARE = 0.2
# A batch remembers all that it has answered: after so many it takes in no more.
LIFE = 4096

Kind = tuple[str | None, bool]
"""What may share a batch: an adapter's key (None: the base), and whether it is streamed."""


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """A loaded adapter: its public name, where it came from, and the generator's key for it."""

    name: str
    path: str
    key: str


@dataclass(eq=False, slots=True)
class Job:
    """One request under way; the loop receives tokens, and the result or an error last."""

    key: str | None
    request: Request
    stream: bool
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Token | Generation | Exception] = field(default_factory=asyncio.Queue)
    cancelled: bool = False

    async def tokens(self) -> AsyncIterator[Token]:
        """Tokens as they come; ends with the answer."""
        while True:
            event = await self.events.get()
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Generation):
                return
            yield event

    async def result(self) -> Generation:
        """The whole answer."""
        while True:
            event = await self.events.get()
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Generation):
                return event


@dataclass(eq=False, slots=True)
class _Running:
    kind: Kind
    batch: Decoding
    jobs: list[Job]
    open: set[int]

    def absorb(self, other: _Running) -> None:
        offset = self.batch.absorb(other.batch)
        self.open |= {offset + index for index in other.open}
        self.jobs += other.jobs


class Engine:
    """Owns the generator. `submit`, `load` and `unload` are called from an asyncio loop."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self._adapters: dict[str, LoadedAdapter] = {}
        self._waiting: dict[Kind, deque[Job]] = {}
        self._looks: dict[Kind, tuple[int, float]] = {}
        self._retired: set[str] = set()
        self._running: list[_Running] = []
        self._counter = 0
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    @property
    def adapters(self) -> Mapping[str, LoadedAdapter]:
        """What is loaded, by public name."""
        return self._adapters

    def at_work(self) -> tuple[frozenset[str], frozenset[str]]:
        """The names of the adapters whose requests run, and of those whose requests wait."""
        with self._wake:
            names = {adapter.key: name for name, adapter in self._adapters.items()}
            running = {names.get(one.kind[0] or "") for one in list(self._running)}
            waiting = {names.get(key or "") for (key, _), queue in self._waiting.items() if queue}
        return frozenset(filter(None, running)), frozenset(filter(None, waiting))

    def load(self, name: str, path: str) -> None:
        """Read an adapter; raises `BrokenAdapter`. Slow: call it outside the loop's thread."""
        with self._wake:
            self._counter += 1
            key = f"{name}#{self._counter}"
        self.generator.load(key, Path(path))
        self._adapters[name] = LoadedAdapter(name, path, key)

    def unload(self, name: str) -> None:
        """Forget an adapter by name; what was asked of it before is still answered."""
        with self._wake:
            self._retired.add(self._adapters.pop(name).key)
            self._wake.notify()

    def submit(self, name: str | None, requests: Sequence[Request], *, stream: bool) -> list[Job]:
        """Queue requests for an adapter (None: the base)."""
        loop = asyncio.get_running_loop()
        with self._wake:
            key = None if name is None else self._adapters[name].key
            jobs = [Job(key, request, stream, loop) for request in requests]
            self._waiting.setdefault((key, stream), deque()).extend(jobs)
            self._wake.notify()
        return jobs

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Give up what a client no longer waits for."""
        for job in jobs:
            job.cancelled = True

    def stop(self) -> None:
        """End the thread after the step under way."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout=10)

    # --- the decoding thread --------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._stopping and not self._running and not any(self._waiting.values()):
                    self._forget_retired()
                    self._wake.wait()
                self._forget_retired()
                if self._stopping:
                    return
                idle = not self._running
            if idle:
                threading.Event().wait(GATHER_S)
            self._admit()
            for running in list(self._running):
                self._step(running)
            self._merge()

    def _merge(self) -> None:
        """What answers the same kind goes on as one batch."""
        kept: dict[Kind, _Running] = {}
        for running in list(self._running):
            first = kept.setdefault(running.kind, running)
            if first is running:
                continue
            if len(first.jobs) + len(running.jobs) > LIFE:
                kept[running.kind] = running
                continue
            try:
                first.absorb(running)
            except Exception as error:  # as in a step: the thread goes on
                self._fail(first, error)
                self._fail(running, error)
                del kept[running.kind]
            else:
                self._running.remove(running)

    def _admit(self) -> None:
        with self._wake:
            now = time.monotonic()
            ready = {
                kind for kind, queue in self._waiting.items() if self._gathered(kind, queue, now)
            }
        while True:
            with self._wake:
                chosen = self._next_queue(ready)
                if chosen is None:
                    return
                ready.discard(chosen)
                queue = self._waiting.pop(chosen)
                del self._looks[chosen]
                jobs = [queue.popleft() for _ in range(min(ROWS - self._rows(chosen), len(queue)))]
                if queue:
                    self._waiting[chosen] = queue  # behind all others: adapters take turns
            jobs = [job for job in jobs if not job.cancelled]
            if jobs:
                self._start(chosen, jobs)

    def _rows(self, kind: Kind) -> int:
        return sum(len(r.open) for r in self._running if r.kind == kind)

    def _next_queue(self, ready: Collection[Kind]) -> Kind | None:
        kinds = {running.kind for running in self._running}
        for chosen in self._waiting:
            fits = chosen in kinds or len(kinds) < BATCHES_AT_ONCE
            if chosen in ready and fits and self._rows(chosen) < ROWS:
                return chosen
        return None

    def _gathered(self, kind: Kind, queue: Sized, now: float) -> bool:
        """Whether the burst of requests that fills this queue seems to be over."""
        before, since = self._looks.get(kind, (0, now))
        self._looks[kind] = (len(queue), since)
        if now - since >= GATHER_LIMIT_S:
            return True
        under_way = self._rows(kind)
        if under_way:
            return min(len(queue), ROWS - under_way) >= JOIN_SHARE * under_way
        return len(queue) >= ROWS or len(queue) == before

    def _start(self, kind: Kind, jobs: list[Job]) -> None:
        key, stream = kind
        try:
            batch = self.generator.start(key, [job.request for job in jobs], stream=stream)
        except Exception as error:  # one batch's failure must not end the thread
            self._tell([(job, _failure(error)) for job in jobs])
            return
        self._running.append(_Running(kind, batch, jobs, set(range(len(jobs)))))

    def _step(self, running: _Running) -> None:
        for index in running.open:
            if running.jobs[index].cancelled:
                running.batch.cancel(index)
        try:
            tokens = running.batch.step()
        except Exception as error:  # one batch's failure must not end the thread
            self._fail(running, error)
            return
        news: list[tuple[Job, Token | Generation | Exception]] = [
            (running.jobs[token.index], token) for token in tokens
        ]
        for index in sorted(running.open):
            if running.batch.all[index].finish is not None:
                running.open.discard(index)
                news.append((running.jobs[index], self._result(running.batch, index)))
        if not running.open:
            self._running.remove(running)
        self._tell(news)

    def _fail(self, running: _Running, error: Exception) -> None:
        self._running.remove(running)
        failure = _failure(error)
        self._tell([(running.jobs[index], failure) for index in running.open])

    def _result(self, batch: Decoding, index: int) -> Generation:
        state = batch.all[index]
        text = state.text
        if not state.request.stop:
            text = self.generator.tokenizer.decode(state.ids, skip_special_tokens=True)
        return Generation(
            text,
            tuple(state.ids),
            tuple(state.logprobs),
            tuple(state.top),
            state.finish or "abort",
            len(state.request.prompt_ids),
            tuple(state.taken),
        )

    def _forget_retired(self) -> None:
        if not self._retired:
            return
        used: set[str | None] = {running.kind[0] for running in self._running}
        used |= {key for (key, _), queue in self._waiting.items() if queue}
        for key in self._retired - used:
            self.generator.unload(key)
        self._retired = {key for key in self._retired if key in used}

    @staticmethod
    def _tell(news: Sequence[tuple[Job, Token | Generation | Exception]]) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[tuple[Job, Token | Generation | Exception]]]
        loops = {}
        for job, event in news:
            loops.setdefault(job.loop, []).append((job, event))
        for loop, events in loops.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_deliver, events)


def _failure(error: Exception) -> PaloradError:
    if isinstance(error, PaloradError):
        return error
    return ServerUnusable(f"decoding failed: {' '.join(str(error).split())[:300]}")


def _deliver(events: Sequence[tuple[Job, Token | Generation | Exception]]) -> None:
    for job, event in events:
        job.events.put_nowait(event)
