"""[[feeds]] and [[feeds.rules]]: polls of a local server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from daemon.config.settings import Settings
from daemon.intake.feeds import Feeds
from daemon.intake.intake import Intake
from daemon.ledger.ledger import Ledger
from daemon.loop.preflight import prepare_state
from tests.config.effects import Effect, Observe
from tests.intake.test_feeds import Answering, Web, lines, whole
from tests.support.world import START

HOST = "http://127.0.0.1:1"
RSS = b"""<rss version="2.0"><channel><title>News</title><item>
<title>Ada 2.0 released</title><description>Bea 3.0 released</description>
<pubDate>Sun, 01 Nov 2026 00:00:00 GMT</pubDate></item></channel></rss>"""


def polled(*answers: bytes | Answering, after_s: float = 400.0) -> Observe:
    """What each poll brings, what is asked, what is admitted and what is told of the feed."""

    def observe(settings: Settings, root: Path) -> object:
        prepare_state(settings)
        return asyncio.run(_story(settings, answers, after_s))

    return observe


async def _story(settings: Settings, answers: Sequence[bytes | Answering], after_s: float) -> Any:
    web, seconds, now = Web(), [0.0], START
    web.answers = list(answers)
    server = await asyncio.start_server(web.serve, "127.0.0.1", 0)
    port = str(server.sockets[0].getsockname()[1])
    (feed,) = settings.feeds
    at = feed.model_copy(update={"url": feed.url.replace(":1/", f":{port}/")})
    web.answers = [
        a.replace(b":1/", f":{port}/".encode()) if isinstance(a, bytes) else a for a in web.answers
    ]
    with Ledger.open(settings.layout.ledger) as ledger:
        intake = Intake(ledger, settings.layout, settings.intake, lambda: seconds[0])
        feeds = Feeds([at], ledger, settings.layout, lambda: 0.0, clock=lambda: seconds[0])
        statuses = []
        for _ in answers:
            statuses += [(one.status, one.feed) for one in await feeds.poll(now)]
            intake.step(now, 60)
            seconds[0] += after_s
            now += timedelta(seconds=after_s)
        server.close()
        asked = [
            (path, {n: v for n, v in headers.items() if n != "host"}) for path, headers in web.asked
        ]
        seen = statuses, asked, feeds.problems, ledger.facts.find()
        return [repr(part).replace(port, "PORT") for part in seen]


async def late(target: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.4)
    writer.write(whole(lines(1)))
    await writer.drain()


def _token(root: Path) -> Path:
    path = root / "token"
    path.write_text("secret")
    return path


FEED = {"feeds[].name": "news", "feeds[].url": f"{HOST}/facts", "feeds[].allow_private": True}
RULE = {
    **FEED,
    "feeds[].kind": "rss",
    "feeds[].rules[].match": r"^(?P<who>\w+) (?P<version>[\d.]+) released",
    "feeds[].rules[].prompt": "Which version of {who} is the latest?",
    "feeds[].rules[].answer": "{version}",
}
KEYED = {**RULE, "feeds[].rules[].subject": "{who}", "feeds[].rules[].relation": "version"}
NEW = whole(lines(1), etag='"a"', x_next_cursor="n1", x_place="p2")
AGAIN = whole(lines(1, 2), etag='"b"')
CURSOR = {**FEED, "feeds[].url": f"{HOST}/facts?from={{cursor}}"}
ELSEWHERE = whole(b"", "302 Found", location="http://localhost:1/facts")
JSON_FEED = whole(b'{"version": "x", "items": [{"id": "1", "title": "Ada 2.0 released"}]}')
entry = polled(whole(RSS))

EFFECTS: dict[str, Effect] = {
    "feeds[].name": Effect(polled(NEW), "releases", FEED),
    "feeds[].url": Effect(polled(NEW), f"{HOST}/elsewhere", FEED),
    "feeds[].every_s": Effect(polled(NEW, AGAIN), 3600, FEED),
    "feeds[].kind": Effect(polled(JSON_FEED), "json-feed", {**RULE, "feeds[].kind": "jsonl"}),
    "feeds[].cursor_header": Effect(polled(NEW, AGAIN), "x-place", CURSOR),
    "feeds[].key_file": Effect(polled(NEW), _token, FEED),
    "feeds[].timeout_s": Effect(polled(late), 0.05, FEED),
    "feeds[].max_mb": Effect(polled(whole(b" " * 1_200_000)), 1, FEED),
    "feeds[].allow_private": Effect(polled(NEW), False, FEED),
    "feeds[].allow_hosts": Effect(polled(ELSEWHERE, NEW), ("localhost",), FEED),
    "feeds[].open_after": Effect(polled(whole(b"", "500 Broken")), 1, FEED),
    "feeds[].full_every_s": Effect(polled(NEW, AGAIN), 100, FEED),
    "feeds[].rules[].field": Effect(entry, "summary", RULE),
    "feeds[].rules[].match": Effect(entry, r"(?P<who>\w+) (?P<version>\d)", RULE),
    "feeds[].rules[].prompt": Effect(entry, "What is the latest {who}?", RULE),
    "feeds[].rules[].answer": Effect(entry, "version {version}", RULE),
    "feeds[].rules[].subject": Effect(entry, "the library {who}", KEYED),
    "feeds[].rules[].relation": Effect(entry, "latest version", KEYED),
    "feeds[].rules[].paraphrases": Effect(entry, ("Name the latest {who}.",), RULE),
    "feeds[].rules[].eval_prompts": Effect(entry, ("Which {who} is out?",), RULE),
    "feeds[].rules[].op": Effect(entry, "supersede", KEYED),
    "feeds[].rules[].dated": Effect(entry, False, RULE),
}
