"""Feeds are polled; what is new becomes a batch that carries the place it was read up to."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

import httpx
import structlog

from adapters import files
from daemon.base import faults
from daemon.config.feeds import FeedSettings
from daemon.config.layout import Layout
from daemon.intake.admit import FEED
from daemon.intake.feed_entries import lines_of_feed
from daemon.intake.public_http import CONNECT_S, EXPECTED, GuardedTransport, bounded_body, told
from daemon.ledger.ledger import Ledger
from policies.errors import FeedFailed
from policies.facts.feed_rules import Pulse, after_failure, after_success, wait_asked
from policies.records import Batch, Record

REDIRECTIONS: Final = 5
AT_ONCE: Final = 4
_AGENT: Final = "palorad"
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")

log = structlog.get_logger(__name__)


class Cursor(Record):
    """Up to where a feed was read, as the ledger keeps it."""

    etag: str = ""
    modified: str = ""
    place: str = ""
    body: str = ""
    full_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Polled:
    """What one poll brought: a batch, nothing new, or a problem."""

    feed: str
    status: str
    batch: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole body on disk and what the server said about it."""

    part: Path
    etag: str
    modified: str
    place: str
    digest: str
    full: bool


class Feeds:
    """Polls every feed when it is due; one that fails rests, the others go on.

    What is new is begun as a batch with its cursor; intake admits it in its steps, the cursor
    together with the end of the content.
    """

    def __init__(
        self,
        feeds: Sequence[FeedSettings],
        ledger: Ledger,
        layout: Layout,
        jitter: Callable[[], float],
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._feeds = {feed.name: feed for feed in feeds}
        self._ledger = ledger
        self._layout = layout
        self._jitter = jitter
        self._transport = transport
        self._clock = clock
        self._pulses: dict[str, Pulse] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._under_way: set[str] = set()

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for every feed that does not answer as it should."""
        found = []
        for name, pulse in self._pulses.items():
            if pulse.open:
                minutes = max(0.0, pulse.due - self._clock()) / 60
                found.append(
                    f"feed {name}: {pulse.failures} failures in a row, the last: {pulse.problem};"
                    f" asked again in {minutes:.0f} min"
                )
            elif pulse.failures:
                found.append(f"feed {name}: {pulse.problem}")
        return tuple(found)

    def due(self) -> tuple[str, ...]:
        """The feeds to be asked now."""
        return tuple(name for name in self._feeds if self.is_due(name))

    def is_due(self, name: str) -> bool:
        """Whether a feed is to be asked now."""
        pulse = self._pulses.get(name)
        return name not in self._under_way and (pulse is None or pulse.due <= self._clock())

    async def poll(self, now: datetime) -> list[Polled]:
        """Ask every feed that is due. Failures are told in the results, never raised."""
        return list(await asyncio.gather(*(self.poll_one(name, now) for name in self.due())))

    async def poll_one(self, name: str, now: datetime) -> Polled:
        """Ask one feed, whether it is due or not."""
        feed, begun = self._feeds[name], self._clock()
        self._under_way.add(name)
        try:
            async with self._slots, asyncio.timeout(feed.timeout_s):
                polled = await self._poll(feed, now)
        except EXPECTED as error:
            return self._failed(feed, error, begun, now)
        except Exception as error:
            log.exception("feed.unexpected", feed=name)
            return self._failed(feed, error, begun, now)
        finally:
            self._under_way.discard(name)
        before = self._pulses.get(name)
        self._pulses[name] = after_success(begun, feed.every_s)
        if before is not None and before.open:
            self._ledger.events.record("feed.closed", name, {"failures": before.failures}, now)
        return polled

    def _failed(self, feed: FeedSettings, error: Exception, begun: float, now: datetime) -> Polled:
        problem = told(error, feed.timeout_s)
        before = self._pulses.get(feed.name) or Pulse(due=begun)
        final = isinstance(error, FeedFailed) and error.final
        pulse = after_failure(
            before,
            problem,
            begun,
            open_after=1 if final else feed.open_after,
            jitter=self._jitter(),
            wait_s=error.wait_s if isinstance(error, FeedFailed) else 0.0,
        )
        self._pulses[feed.name] = pulse
        log.warning("feed.failed", feed=feed.name, problem=problem, failures=pulse.failures)
        if pulse.open and not before.open:
            self._ledger.events.record("feed.opened", feed.name, {"problem": problem}, now)
        return Polled(feed.name, "failed", problem=problem)

    # --- one poll ------------------------------------------------------------------------------

    async def _poll(self, feed: FeedSettings, now: datetime) -> Polled:
        stored = self._ledger.feeds.cursor(feed.name)
        cursor = Cursor.model_validate_json(stored) if stored else Cursor()
        part = self._layout.archive / f".{os.getpid()}.feed.{feed.name}.part"
        try:
            answer = await self._fetch(feed, cursor, part, now)
            if answer is None:
                return Polled(feed.name, "unchanged")
            return await self._admit(feed, cursor, answer, now)
        finally:
            part.unlink(missing_ok=True)

    async def _admit(
        self, feed: FeedSettings, before: Cursor, answer: Answer, now: datetime
    ) -> Polled:
        batch_id, changed = answer.digest, answer.digest != before.body
        cursor = Cursor(
            etag=answer.etag,
            modified=answer.modified,
            place=answer.place or before.place,
            body=answer.digest,
            full_at=now if answer.full else before.full_at,
        ).model_dump_json(exclude_defaults=True)
        if not changed or self._ledger.batches.is_complete(batch_id):
            self._ledger.feeds.set_cursor(feed.name, cursor, now)
            return Polled(feed.name, "unchanged")
        archived = self._layout.archived(batch_id)
        files.put_in_place(answer.part, archived)
        faults.point("feed:archived")
        batch = Batch(
            id=batch_id,
            name=f"{feed.name}@{now:%Y%m%dT%H%M%SZ}",
            received_at=now,
            source=FEED + feed.name,
            accepted=0,
            quarantined=0,
        )
        self._ledger.admission.begin_batch(batch, signature=cursor)
        log.info("feed.new", feed=feed.name, batch=batch_id)
        return Polled(feed.name, "new", batch=batch_id)

    # --- fetching ------------------------------------------------------------------------------

    async def _fetch(
        self, feed: FeedSettings, cursor: Cursor, part: Path, now: datetime
    ) -> Answer | None:
        """The body as lines of facts in `part`; none where the server says nothing changed."""
        conditional = cursor.full_at is not None and (
            0 <= (now - cursor.full_at).total_seconds() < feed.full_every_s
        )
        url = feed.url.replace("{cursor}", quote(cursor.place, safe=""))
        async with self._client(feed) as client:
            for _ in range(REDIRECTIONS + 1):
                request = client.build_request(
                    "GET", url, headers=_headers(feed, url, cursor if conditional else Cursor())
                )
                response = await client.send(request, stream=True)
                try:
                    if response.status_code == 304:
                        return None
                    if response.is_redirect:
                        url = _next(feed, url, response.headers.get("location", ""))
                        continue
                    _check(response, now)
                    return await _keep(response, feed, part, full=not conditional)
                finally:
                    await response.aclose()
        raise FeedFailed(f"redirects more than {REDIRECTIONS} times")

    @asynccontextmanager
    async def _client(self, feed: FeedSettings) -> AsyncIterator[httpx.AsyncClient]:
        if self._transport is not None:
            transport: httpx.AsyncBaseTransport = self._transport
        else:
            transport = httpx.AsyncHTTPTransport() if feed.allow_private else GuardedTransport()
        timeout = httpx.Timeout(feed.timeout_s, connect=CONNECT_S)
        async with httpx.AsyncClient(
            transport=transport, timeout=timeout, trust_env=False, follow_redirects=False
        ) as client:
            yield client


async def _keep(response: httpx.Response, feed: FeedSettings, part: Path, *, full: bool) -> Answer:
    limit = feed.max_mb * 2**20
    length = response.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise FeedFailed(f"answers with {int(length) / 2**20:.0f} MiB; at most {feed.max_mb}")
    digest, last = hashlib.sha256(), b""
    with part.open("wb") as out:
        async for piece in bounded_body(response, limit):
            out.write(piece)
            digest.update(piece)
            last = (last + piece)[-(1 << 16) :]
            await asyncio.sleep(0)
        if feed.kind != "jsonl":
            out.flush()
            data = await asyncio.to_thread(_converted, part, feed)
            out.seek(0)
            out.truncate()
            out.write(data)
            digest = hashlib.sha256(data)
        else:
            _check_end(last)
        await asyncio.to_thread(files.sync_stream, out)
    return Answer(
        part=part,
        etag=_mark(response, "etag", 200),
        modified=_mark(response, "last-modified", 100),
        place=response.headers.get(feed.cursor_header, "")[:1000],
        digest=digest.hexdigest()[:32],
        full=full,
    )


def _mark(response: httpx.Response, header: str, limit: int) -> str:
    """A mark of change that can be sent back as it is; else none."""
    value = str(response.headers.get(header, ""))
    return value if value.isascii() and len(value) <= limit else ""


def _converted(part: Path, feed: FeedSettings) -> bytes:
    rules = [rule.rule for rule in feed.rules]
    return lines_of_feed(part.read_bytes(), feed.kind, rules, feed.name)


def _check_end(last: bytes) -> None:
    """A body without a length may have been cut off: its last line tells."""
    line = last.rsplit(b"\n", 1)[-1].strip()
    if line:
        try:
            # What is only too long a number, or nested too deep, is left to the line's quarantine.
            with suppress(RecursionError):
                json.loads(line, parse_int=float)
        except ValueError:
            raise FeedFailed("is cut off in the middle of its last line") from None


def _headers(feed: FeedSettings, url: str, cursor: Cursor) -> dict[str, str]:
    headers = {"accept-encoding": "gzip, identity", "user-agent": _AGENT}
    if cursor.etag:
        headers["if-none-match"] = cursor.etag
    if cursor.modified:
        headers["if-modified-since"] = cursor.modified
    if feed.key_file is not None and _host(url) == _host(feed.url):
        key = feed.key_file.read_bytes().decode("ascii", errors="replace").strip()
        if not _TOKEN.fullmatch(key):
            raise FeedFailed(f"key_file {feed.key_file} does not hold one key; correct it")
        headers["authorization"] = f"Bearer {key}"
    return headers


def _next(feed: FeedSettings, url: str, location: str) -> str:
    """Where a redirection leads, if that is allowed."""
    target = urljoin(url, location)
    scheme = urlsplit(target).scheme
    if not location or scheme not in ("http", "https"):
        raise FeedFailed(f"redirects to {location[:100]!r}, which is no address", final=True)
    if urlsplit(url).scheme == "https" and scheme == "http":
        raise FeedFailed("redirects from https to http", final=True)
    host = urlsplit(target).hostname
    if _host(target) != _host(feed.url) and host not in feed.allow_hosts:
        raise FeedFailed(f"redirects to another host, {host}; allow_hosts may name it", final=True)
    return target


def _host(url: str) -> tuple[str | None, int | None]:
    split = urlsplit(url)
    return split.hostname, split.port or {"http": 80, "https": 443}.get(split.scheme)


def _check(response: httpx.Response, now: datetime) -> None:
    status = response.status_code
    if status == 200:
        return
    raise FeedFailed(
        f"answers {status} {response.reason_phrase}".strip(),
        final=status == 410,
        wait_s=wait_asked(response.headers.get("retry-after", ""), now),
    )
