"""One answer of a feed over HTTP: its body on disk, and the marks to ask with the next time."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

import httpx

from adapters import files
from daemon.config.feeds import FeedSettings
from daemon.intake.feed_entries import DOCUMENT_BYTES, lines_of_feed
from daemon.intake.public_http import CONNECT_S, GuardedTransport, bounded_body
from policies.errors import FeedFailed
from policies.facts.feed_rules import wait_asked
from policies.records import Record

REDIRECTIONS: Final = 5
_AGENT: Final = "palorad"
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")


class Cursor(Record):
    """Up to where a feed was read, as the ledger keeps it.

    `etag` and `modified` are the server's marks of change, `place` is where it said to go on,
    `body` the batch that its last body was, `full_at` when it was last asked without conditions.
    """

    etag: str = ""
    modified: str = ""
    place: str = ""
    body: str = ""
    full_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class FetchedBody:
    """A whole body on disk and what the server said about it."""

    part: Path
    etag: str
    modified: str
    place: str
    digest: str
    full: bool


async def fetch(
    feed: FeedSettings,
    cursor: Cursor,
    part: Path,
    now: datetime,
    transport: httpx.AsyncBaseTransport | None = None,
) -> FetchedBody | None:
    """The body as lines of facts in `part`, synced; none where the server says nothing changed.

    Raises `FeedFailed`, `httpx.HTTPError`, `OSError`.
    """
    conditional = cursor.full_at is not None and (
        0 <= (now - cursor.full_at).total_seconds() < feed.full_every_s
    )
    url = feed.url.replace("{cursor}", quote(cursor.place, safe=""))
    async with _client(feed, transport) as client:
        for _ in range(REDIRECTIONS + 1):
            request = client.build_request(
                "GET", url, headers=_headers(feed, url, cursor if conditional else Cursor())
            )
            response = await client.send(request, stream=True)
            try:
                if response.status_code == 304:
                    return None
                if response.is_redirect:
                    url = _redirected(feed, url, response.headers.get("location", ""))
                    continue
                _require_ok(response, now)
                return await _keep(response, feed, part, full=not conditional)
            finally:
                await response.aclose()
    raise FeedFailed(f"redirects more than {REDIRECTIONS} times")


@asynccontextmanager
async def _client(
    feed: FeedSettings, transport: httpx.AsyncBaseTransport | None
) -> AsyncIterator[httpx.AsyncClient]:
    if transport is None:
        transport = httpx.AsyncHTTPTransport() if feed.allow_private else GuardedTransport()
    timeout = httpx.Timeout(feed.timeout_s, connect=CONNECT_S)
    async with httpx.AsyncClient(
        transport=transport, timeout=timeout, trust_env=False, follow_redirects=False
    ) as client:
        yield client


async def _keep(
    response: httpx.Response, feed: FeedSettings, part: Path, *, full: bool
) -> FetchedBody:
    limit, why = _limit_of(feed)
    length = response.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        size = int(length) / 2**20
        raise FeedFailed(f"answers with {size:.0f} MiB; at most {limit / 2**20:g} ({why})")
    digest, last = hashlib.sha256(), b""
    with part.open("wb") as out:
        async for piece in bounded_body(response, limit, why):
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
    return FetchedBody(
        part=part,
        etag=_mark(response, "etag", 200),
        modified=_mark(response, "last-modified", 100),
        place=response.headers.get(feed.cursor_header, "")[:1000],
        digest=digest.hexdigest()[:32],
        full=full,
    )


def _limit_of(feed: FeedSettings) -> tuple[int, str]:
    """How many bytes an answer may have, and what says so."""
    allowed = feed.max_mb * 2**20
    if feed.kind == "jsonl" or allowed <= DOCUMENT_BYTES:
        return allowed, "setting max_mb"
    return DOCUMENT_BYTES, f"{feed.kind} is read as a whole; JSON Lines may be larger"


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


def _redirected(feed: FeedSettings, url: str, location: str) -> str:
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


def _require_ok(response: httpx.Response, now: datetime) -> None:
    status = response.status_code
    if status == 200:
        return
    raise FeedFailed(
        f"answers {status} {response.reason_phrase}".strip(),
        final=status == 410,
        wait_s=wait_asked(response.headers.get("retry-after", ""), now),
    )
