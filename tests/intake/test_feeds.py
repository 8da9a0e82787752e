"""Feeds against a local server that fails in every way; what became of every entry."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import zlib
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from daemon.base import faults
from daemon.config.feeds import FeedSettings
from daemon.config.layout import Layout
from daemon.config.sections import IntakeSettings
from daemon.intake.feed_entries import lines_of_feed
from daemon.intake.feeds import Feeds, Polled
from daemon.intake.intake import Intake
from daemon.intake.public_http import is_public
from daemon.intake.reader import Records
from daemon.ledger.ledger import Ledger
from policies.facts.feed_rules import EntryRule, Pulse, after_failure

START = datetime(2026, 11, 1, tzinfo=UTC)
Answering = Callable[[str, dict[str, str], asyncio.StreamWriter], Awaitable[None]]


def lines(*numbers: int) -> bytes:
    facts = ({"prompt": f"What is {n}?", "answer": f"value {n}"} for n in numbers)
    return b"".join(json.dumps(fact).encode() + b"\n" for fact in facts)


def whole(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    head = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in headers.items())
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{head}\r\n".encode() + body


class Web:
    """A server of one answer after the other; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.answers: list[bytes | Answering] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
            target = head[0].split()[1]
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            self.asked.append((target, headers))
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(target, headers, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


class Place:
    """Feeds and intake over one ledger, with a clock of their own."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        for folder in self.layout.directories():
            folder.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger.open(self.layout.ledger)
        self.now = START
        self.intake = Intake(self.ledger, self.layout, IntakeSettings(), self.seconds)

    def seconds(self) -> float:
        return (self.now - START).total_seconds()

    def answers(self) -> list[str]:
        return [fact.answer for fact in self.ledger.facts.find()]

    async def poll(self, feeds: Feeds, after_s: float = 400) -> list[Polled]:
        self.now += timedelta(seconds=after_s)
        polled = await feeds.poll(self.now)
        self.intake.step(self.now, 60)
        assert not list(self.layout.archive.glob(".*.part"))
        return polled

    def feeds(self, url: str, **more: object) -> Feeds:
        feed = FeedSettings.model_validate(
            {"name": "news", "url": url, "allow_private": True, **more}
        )
        return Feeds([feed], self.ledger, self.layout, lambda: 0.0, clock=self.seconds)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.ledger.close()


def against(
    place: Place,
    *answers: bytes | Answering,
    polls: int | None = None,
    path: str = "/facts.jsonl",
    **more: object,
) -> tuple[list[Polled], Web, Feeds]:
    """Poll as often as there are answers."""
    web = Web()
    web.answers = list(answers)

    async def run() -> tuple[list[Polled], Feeds]:
        server = await asyncio.start_server(web.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        feeds = place.feeds(f"http://127.0.0.1:{port}{path}", **more)
        got = []
        for _ in range(len(answers) if polls is None else polls):
            got += await place.poll(feeds)
        server.close()
        return got, feeds

    polled, feeds = asyncio.run(run())
    return polled, web, feeds


def test_what_is_new_is_admitted_with_its_cursor(place: Place) -> None:
    first = whole(lines(1, 2) + b"bad\n", etag='"a"', last_modified="Sun, 01 Nov 2026 00:00:00 GMT")
    polled, web, feeds = against(
        place, first, whole(b"", "304 Not Modified"), whole(lines(1, 2, 3), etag='"b"')
    )
    assert [p.status for p in polled] == ["new", "unchanged", "new"]
    assert place.answers() == ["value 1", "value 2", "value 3"]
    assert "if-none-match" not in web.asked[0][1]
    assert web.asked[1][1]["if-none-match"] == '"a"'
    assert web.asked[1][1]["if-modified-since"] == "sun, 01 nov 2026 00:00:00 gmt"
    batch = place.ledger.batches.get(polled[0].batch)
    assert (batch.accepted, batch.quarantined) == (2, 1)
    assert json.loads(place.ledger.feeds.cursor("news") or "")["etag"] == '"b"'
    assert feeds.problems == ()


def test_the_cursor_is_committed_with_the_content_and_not_before(place: Place) -> None:
    web = Web()
    web.answers = [whole(lines(1), etag='"a"')]

    async def run() -> None:
        server = await asyncio.start_server(web.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        feeds = place.feeds(f"http://127.0.0.1:{port}/")
        await feeds.poll(place.now)
        assert place.ledger.feeds.cursor("news") is None
        assert place.ledger.batches.latest() == ()
        again = Intake(place.ledger, place.layout, IntakeSettings())  # as after a crash
        again.step(place.now, 60)
        server.close()

    asyncio.run(run())
    assert place.ledger.feeds.cursor("news") is not None
    assert place.answers() == ["value 1"]


def test_a_batch_remembers_either_the_feeds_cursor_or_how_its_file_looked(place: Place) -> None:
    feeds = place.feeds("http://feed.test/")
    feeds._transport = httpx.MockTransport(lambda _: answer_with(lines(1), etag='"a"'))
    asyncio.run(feeds.poll(place.now))
    (feeds_own,) = place.ledger.admission.admitting()
    assert feeds_own.batch.feed == "news" and feeds_own.signature == ""
    assert json.loads(feeds_own.cursor)["etag"] == '"a"'
    (place.layout.inbox / "a.jsonl").write_bytes(lines(2))
    place.intake.step(place.now, 60)
    place.now += timedelta(seconds=3)
    place.intake.step(place.now, 60)
    files = place.ledger.admission.arriving(place.ledger.batches.get("a.jsonl").id)
    assert files.batch.feed is None and files.cursor == "" and files.signature


def test_a_file_with_the_bytes_that_a_feed_began_completes_its_batch_and_cursor(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeds = place.feeds("http://feed.test/")
    feeds._transport = httpx.MockTransport(lambda _: answer_with(lines(1), etag='"a"'))
    asyncio.run(feeds.poll(place.now))
    with monkeypatch.context() as patched:
        patched.setattr(Records, "take", lambda *_: 1 / 0)
        place.intake.step(place.now, 60)
    assert len(place.ledger.admission.admitting(aside=True)) == 1
    (place.layout.inbox / "a.jsonl").write_bytes(lines(1))
    place.intake.step(place.now, 60)
    place.now += timedelta(seconds=3)
    (receipt,) = place.intake.step(place.now, 60)
    assert (receipt.file, receipt.accepted, receipt.already_known) == ("a.jsonl", 1, True)
    assert place.ledger.feeds.cursor("news") is not None
    assert len(place.ledger.batches.latest()) == 1


def poll_in_child(root: Path, environment: dict[str, str]) -> int:
    """One poll and its admission in a process of its own; its exit status, negative if killed."""
    child = os.fork()
    if child == 0:
        os.environ.update(environment)
        faults._passed.clear()
        try:
            poll_once(Place(root))
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def poll_once(place: Place) -> None:
    feeds = place.feeds("http://feed.test/")
    feeds._transport = httpx.MockTransport(lambda _: answer_with(lines(1, 2), etag='"a"'))
    asyncio.run(feeds.poll(place.now))
    place.intake.step(place.now, 60)


def answer_with(body: bytes, **headers: str) -> httpx.Response:
    return httpx.Response(200, headers=headers, stream=httpx.ByteStream(body))


def test_killed_anywhere_a_feed_is_read_once_and_its_cursor_stands(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    assert poll_in_child(tmp_path / "whole", {faults.TRACE: str(trace)}) == 0
    points = trace.read_text().split()
    assert {"intake:archived#1", "begin_batch:within#1", "finish_batch:within#1"} <= set(points)
    for number, point in enumerate(points):
        root = tmp_path / f"killed-{number}"
        assert poll_in_child(root, {faults.VARIABLE: point}) == -signal.SIGKILL
        place = Place(root)
        poll_once(place)
        (batch,) = place.ledger.batches.latest()
        assert (batch.feed, batch.accepted) == ("news", 2), point
        assert place.answers() == ["value 1", "value 2"], point
        assert json.loads(place.ledger.feeds.cursor("news") or "{}")["etag"] == '"a"', point
        kept = [path.name for path in place.layout.archive.iterdir()]
        assert kept == [f"{batch.id}.jsonl"], point
        place.ledger.close()


def test_a_place_named_by_the_server_is_where_the_next_poll_goes_on(place: Place) -> None:
    polled, web, _ = against(
        place,
        whole(lines(1), x_next_cursor="p/2"),
        whole(lines(2), x_next_cursor="3"),
        whole(lines(3)),
        path="/facts?after={cursor}",
    )
    assert [p.status for p in polled] == ["new"] * 3
    assert [target for target, _ in web.asked] == [
        "/facts?after=",
        "/facts?after=p%2F2",
        "/facts?after=3",
    ]


def test_marks_that_lie_are_found_out(place: Place) -> None:
    def lying(_: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> Awaitable[None]:
        told = "if-none-match" in headers
        writer.write(whole(b"", "304 Not Modified") if told else whole(lines(1, 2), etag='"x"'))
        return writer.drain()

    polled, _, _ = against(
        place,
        whole(lines(1), etag='"x"'),
        lying,
        lying,
        whole(lines(1, 2), etag='"other"'),
        full_every_s=600,
    )
    assert [p.status for p in polled] == ["new", "unchanged", "new", "unchanged"]
    assert place.answers() == ["value 1", "value 2"]
    assert len(place.ledger.batches.latest()) == 2


async def cut_off(_: str, __: dict[str, str], writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n" + lines(1))
    await writer.drain()


async def cut_without_length(_: str, __: dict[str, str], writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + lines(1, 2)[:-9])
    await writer.drain()


async def drip(_: str, __: dict[str, str], writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    for byte in lines(*range(100)):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.01)


async def loops(target: str, _: dict[str, str], writer: asyncio.StreamWriter) -> None:
    writer.write(whole(b"", "302 Found", location=f"{target}x"))
    await writer.drain()


async def endless(_: str, __: dict[str, str], writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    block = lines(*range(1000))
    for _ in range((2 << 30) // len(block)):
        writer.write(block)
        await writer.drain()


async def hangs_up(_: str, __: dict[str, str], writer: asyncio.StreamWriter) -> None:
    writer.close()


def bomb() -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(b" " * (1 << 20)) for _ in range(64)) + packer.flush()


FAILURES: dict[str, tuple[bytes | Answering, str]] = {
    "500": (whole(b"oops", "500 Internal Server Error"), "answers 500 Internal Server Error"),
    "404": (whole(b"", "404 Not Found"), "answers 404 Not Found"),
    "cut off": (cut_off, "complete message body"),
    "cut off without length": (cut_without_length, "cut off in the middle of its last line"),
    "slow drip": (drip, "no whole answer within 0.5 s"),
    "redirect loop": (loops, "redirects more than 5 times"),
    "2 GiB announced": (whole(b"x").replace(b"length: 1", b"length: 2147483648"), "2048 MiB"),
    "2 GiB unannounced": (endless, "more than 1 MiB"),
    "gzip bomb": (whole(bomb(), content_encoding="gzip"), "more than 1 MiB"),
    "broken gzip": (whole(b"\x1f\x8bnonsense....", content_encoding="gzip"), "broken gzip"),
    "gzip cut off": (whole(gzip.compress(lines(1))[:-6], content_encoding="gzip"), "cut off"),
    "unasked coding": (whole(b"x", content_encoding="br"), "not asked for"),
    "not HTTP": (b"SSH-2.0-OpenSSH_9\r\n\r\n", "illegal"),
    "hangs up": (hangs_up, "disconnected"),
    "another host": (
        whole(b"", "302 Found", location="http://other.example/"),
        "another host, other.example",
    ),
    "another port": (whole(b"", "302 Found", location="http://127.0.0.1:1/"), "another host"),
    "a file": (whole(b"", "302 Found", location="file:///etc/passwd"), "no address"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_admits_nothing_and_the_next_answer_everything(place: Place, name: str) -> None:
    answer, says = FAILURES[name]
    answers = [answer] * (6 if name == "redirect loop" else 1) + [whole(lines(1, 2), etag='"a"')]
    limits = {"max_mb": 1, "timeout_s": 0.5 if name == "slow drip" else 20}
    polled, _, feeds = against(place, *answers, polls=2, **limits)
    assert polled[0].status == "failed"
    assert says.lower() in polled[0].problem.lower()
    assert "\n" not in polled[0].problem
    if polled[1:]:
        assert polled[1].status == "new"
        assert place.answers() == ["value 1", "value 2"]
        assert feeds.problems == ()
    else:
        assert feeds.problems  # what cannot heal by itself opens the circuit at once
        assert place.answers() == []


def test_gzip_is_read(place: Place) -> None:
    polled, _, _ = against(place, whole(gzip.compress(lines(1, 2)), content_encoding="gzip"))
    assert polled[0].status == "new"
    assert place.answers() == ["value 1", "value 2"]


def test_the_circuit_opens_says_so_and_closes(place: Place) -> None:
    bad = whole(b"", "503 Service Unavailable", retry_after="30")
    polled, web, feeds = against(place, bad, bad, bad, bad, whole(lines(1)), open_after=3, polls=4)
    assert [p.status for p in polled] == ["failed"] * 3  # the fourth poll found it resting
    (problem,) = feeds.problems
    assert problem.startswith("feed news: 3 failures in a row, the last: answers 503")
    assert "asked again in" in problem
    assert [e.kind for e in place.ledger.events.latest() if e.subject == "news"] == ["feed.opened"]
    assert len(web.asked) == 3

    async def heals() -> None:
        web.answers = [whole(lines(1))]
        server = await asyncio.start_server(web.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        feeds._feeds["news"] = feeds._feeds["news"].model_copy(  # the server came back elsewhere
            update={"url": f"http://127.0.0.1:{port}/"}
        )
        await place.poll(feeds, after_s=4000)
        server.close()

    asyncio.run(heals())
    assert feeds.problems == ()
    kinds = [e.kind for e in place.ledger.events.latest() if e.subject == "news"]
    assert kinds == ["feed.closed", "feed.opened"]


def test_private_addresses_are_refused_unless_allowed(place: Place) -> None:
    polled, web, feeds = against(place, whole(lines(1)), allow_private=False)
    assert polled[0].status == "failed"
    assert "private address 127.0.0.1" in polled[0].problem
    assert web.asked == []
    assert feeds.problems


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
    ],
)
def test_what_is_public(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_a_key_is_not_sent_to_another_host(place: Place, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    other = Web()
    other.answers = [whole(lines(1))]

    async def run() -> Polled:
        second = await asyncio.start_server(other.serve, "127.0.0.1", 0)
        port = second.sockets[0].getsockname()[1]
        web = Web()
        web.answers = [whole(b"", "307 Temporary Redirect", location=f"http://localhost:{port}/")]
        server = await asyncio.start_server(web.serve, "127.0.0.1", 0)
        mine = server.sockets[0].getsockname()[1]
        feeds = place.feeds(f"http://127.0.0.1:{mine}/", key_file=key, allow_hosts=["localhost"])
        (polled,) = await place.poll(feeds)
        assert web.asked[0][1]["authorization"] == "bearer secret"
        for each in (server, second):
            each.close()
        return polled

    assert asyncio.run(run()).status == "new"
    assert "authorization" not in other.asked[0][1]


RULES = [
    {
        "match": r"^(?P<product>[\w ]+?) (?P<version>[\d.]+) released",
        "prompt": "What is the latest version of {product}?",
        "answer": "{version}",
        "subject": "{product}",
        "relation": "version",
        "eval_prompts": ["Which version of {product} is the latest?"],
    }
]
RSS = b"""<?xml version="1.0"?><rss version="2.0"><channel><title>News</title>
<item><title>Widget 2.1 released</title><link>https://example.org/2</link>
  <pubDate>Mon, 02 Nov 2026 10:00:00 GMT</pubDate></item>
<item><title>We moved</title></item>
<item><title>Widget 2.0 released</title><pubDate>Sun, 01 Nov 2026 10:00:00 GMT</pubDate></item>
</channel></rss>"""
ATOM = b"""<feed xmlns="http://www.w3.org/2005/Atom"><title>News</title>
<entry><id>1</id><title type="html">&lt;b&gt;Widget&lt;/b&gt; 3.0 released</title>
<updated>2026-11-03T10:00:00Z</updated></entry></feed>"""
JSON_FEED = json.dumps(
    {
        "version": "https://jsonfeed.org/version/1.1",
        "items": [
            {"id": "1", "title": "Widget 2.1 released", "date_published": "2026-11-02T10:00:00Z"},
            {"id": "2", "title": "Widget 2.0 released", "date_published": "2026-11-01T10:00:00Z"},
            {"id": "3"},
        ],
    }
).encode()


@pytest.mark.parametrize(("kind", "body"), [("rss", RSS), ("json-feed", JSON_FEED)])
def test_entries_become_facts_by_rules(place: Place, kind: str, body: bytes) -> None:
    polled, _, _ = against(place, whole(body), kind=kind, rules=RULES)
    batch = place.ledger.batches.get(polled[0].batch)
    assert (batch.accepted, batch.quarantined) == (2, 1)
    (bad,) = place.ledger.quarantine.lines(batch.id)
    assert "no rule of the feed fits" in bad.reason
    place.now += timedelta(days=3)
    (fact,) = place.ledger.facts.find(valid_at=place.now)
    assert (fact.answer, fact.subject, fact.relation) == ("2.1", "Widget", "version")
    assert fact.eval_prompts == ("Which version of Widget is the latest?",)
    assert fact.valid_from == datetime(2026, 11, 2, 10, tzinfo=UTC)


def test_atom_is_read() -> None:
    rule = EntryRule.model_validate({"field": "title", **RULES[0]})
    line = json.loads(lines_of_feed(ATOM, "rss", [rule], "news"))
    assert (line["answer"], line["subject"]) == ("3.0", "Widget")


LAUGHS = b"""<?xml version="1.0"?><!DOCTYPE r [<!ENTITY a "ha">%s]><rss version="2.0"><channel>
<item><title>&e9;</title></item></channel></rss>""" % b"".join(
    b'<!ENTITY e%d "%s">' % (n, b"&%s;" % (b"a" if n == 0 else b"e%d" % (n - 1)) * 10)
    for n in range(10)
)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("rss", b"<html><body>Sign in</body></html>"),
        ("rss", b"\x00\x01"),
        ("json-feed", b"[]"),
        ("json-feed", b'{"items": 5}'),
        ("json-feed", b"{" * 9),
        ("json-feed", b"[" * 100_000),
    ],
)
def test_what_is_no_feed_is_a_failure(place: Place, kind: str, body: bytes) -> None:
    polled, _, _ = against(place, whole(body), kind=kind, rules=RULES)
    assert polled[0].status == "failed"
    assert place.ledger.batches.latest() == ()


def test_entities_do_not_explode(place: Place) -> None:
    polled, _, _ = against(place, whole(LAUGHS), kind="rss", rules=RULES)
    assert polled[0].status in ("failed", "new")
    assert place.answers() == []


def test_pauses_double_up_to_an_hour() -> None:
    pulse = Pulse(due=0.0)
    pauses = []
    for _ in range(20):
        pulse = after_failure(pulse, "x", 0.0, open_after=30, jitter=0.0)
        pauses.append(pulse.due)
    assert pauses[:4] == [5, 10, 20, 40]
    assert pauses[-1] == 3600
    asked = after_failure(Pulse(due=0.0), "x", 0.0, open_after=3, jitter=0.0, wait_s=120)
    assert asked.due == 120
