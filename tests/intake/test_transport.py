"""Feeds over their real transports, against servers that misbehave below HTTP and in it."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from daemon.config.feeds import FeedSettings
from daemon.config.layout import Layout
from daemon.config.sections import IntakeSettings
from daemon.intake import public_http
from daemon.intake.feeds import Feeds, Polled
from daemon.intake.intake import Intake
from daemon.intake.public_http import is_public
from daemon.ledger.ledger import Ledger
from daemon.retraction.erasure import _blank
from policies.facts.feed_rules import wait_asked

START = datetime(2026, 11, 1, tzinfo=UTC)
FACT = b'{"prompt": "What is 1?", "answer": "one"}\n'
OPENSSL = shutil.which("openssl")
Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Web:
    """A server at a port of this host that behaves as told; counts who came."""

    def __init__(self, behave: Behaviour, tls: ssl.SSLContext | None = None) -> None:
        self.behave = behave
        self.came = 0
        self._tls = tls

    async def __aenter__(self) -> Web:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came += 1
        try:
            await self.behave(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client hung up, or the test is over
        finally:
            writer.close()


def answering(*parts: bytes, pause_s: float = 0.0, then: str = "closes") -> Behaviour:
    """After the whole request these bytes; then the connection is closed, reset or kept open."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        if then == "stays":
            await reader.read()
        elif then == "resets":
            await asyncio.sleep(0.05)
            reset(writer)

    return behave


def reset(writer: asyncio.StreamWriter) -> None:
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


def at_once(*parts: bytes, resets: bool = False) -> Behaviour:
    """What a server does that does not wait for a request of HTTP."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        for part in parts:
            writer.write(part)
            await writer.drain()
        if resets:
            reset(writer)

    return behave


def ok(body: bytes, *headers: bytes) -> bytes:
    head = b"".join(header + b"\r\n" for header in headers)
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%s\r\n" % (len(body), head) + body


LONG = b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n" + FACT
HEAD, HEADERS = b"HTTP/1.1 200 OK\r\n", [b"x: y\r\n"] * 99
GZIP = gzip.compress(FACT)
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%s\r\n" % (len(FACT), FACT)
ALERT = b"\x15\x03\x03\x00\x02\x02\x28"  # fatal, handshake_failure: RFC 5246, 7.2

# name: how it behaves, what the status says of it, whether it is asked over TLS
MISBEHAVIOURS: dict[str, tuple[Behaviour, str, str]] = {
    "reset before the answer": (answering(then="resets"), "Connection reset by peer", "http"),
    "reset in the body": (answering(LONG, then="resets"), "Connection reset by peer", "http"),
    "closed before the answer": (answering(), "disconnected", "http"),
    "closed in the head": (answering(LONG[:20]), "disconnected", "http"),
    "closed in the body": (answering(LONG), "complete message body", "http"),
    "closed in a chunk": (answering(CHUNKED + CHUNK + b"99\r\n{"), "incomplete chunked", "http"),
    "closed between chunks": (answering(CHUNKED + CHUNK), "incomplete chunked", "http"),
    "no size of a chunk": (answering(CHUNKED + b"zz\r\n"), "illegal chunk header", "http"),
    "silent": (answering(then="stays"), "no whole answer within 0.4 s", "http"),
    "silent in the body": (answering(LONG, then="stays"), "within 0.4 s", "http"),
    "slow without end": (answering(LONG, *FACT.split() * 99, pause_s=0.05), "0.4 s", "http"),
    "slow head without end": (answering(HEAD, *HEADERS, pause_s=0.05), "0.4 s", "http"),
    "gzip cut off": (answering(ok(GZIP[:-9], b"content-encoding: gzip")), "cut off", "http"),
    "garbage": (answering(b"SSH-2.0-OpenSSH_9\r\n\r\n"), "illegal status line", "http"),
    "binary": (answering(bytes(range(256)) * 8), "illegal", "http"),
    "one huge header": (answering(b"HTTP/1.1 200 OK\r\nx: " + b"x" * 2**20), "too", "http"),
    "many headers": (answering(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 2**17), "too", "http"),
    "two lengths": (answering(ok(FACT, b"content-length: 5")), "content-length", "http"),
    "no TLS": (at_once(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "TLS failed", "https"),
    "TLS refused": (at_once(ALERT), "TLS failed", "https"),
    "closed in the handshake": (at_once(), "TLS failed", "https"),
    "reset in the handshake": (at_once(resets=True), "Connection reset by peer", "https"),
}
TRANSPORTS = ("guarded", "private")


class Place:
    """Feeds over a ledger, with a clock of their own and what was logged."""

    def __init__(self, root: Path, transport: str) -> None:
        self.layout = Layout(root)
        for folder in self.layout.directories():
            folder.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger.open(self.layout.ledger)
        self.now = START
        self.intake = Intake(self.ledger, self.layout, IntakeSettings(), self.seconds)
        self.private = transport == "private"
        self.logged: list[Any] = []

    def seconds(self) -> float:
        return (self.now - START).total_seconds()

    def feeds(self, url: str, **more: object) -> Feeds:
        settings = {"name": "news", "url": url, "allow_private": self.private, "open_after": 3}
        feed = FeedSettings.model_validate(settings | more)
        return Feeds([feed], self.ledger, self.layout, lambda: 0.0, clock=self.seconds)

    async def after(self, seconds: float, feeds: Feeds) -> list[Polled]:
        """What is polled that many seconds later."""
        self.now += timedelta(seconds=seconds)
        polled = await feeds.poll(self.now)
        self.intake.step(self.now, 60)
        assert list(self.layout.archive.glob(".*")) == []
        return polled

    def events(self) -> list[str]:
        return [e.kind for e in self.ledger.events.latest() if e.subject == "news"]


@pytest.fixture(params=TRANSPORTS)
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """Once over the transport for public addresses, which is told that this host is one."""
    monkeypatch.setattr(public_http, "is_public", lambda _: True)
    made = Place(tmp_path, request.param)
    with capture_logs() as made.logged:
        yield made
        gc.collect()  # what was left open warns, and warnings are errors
    made.ledger.close()


async def rests(place: Place, feeds: Feeds, says: str, came: Callable[[], int]) -> None:
    """Three polls fail, each is counted once and followed by its pause; then the circuit opens."""
    for failures, pause_s in ((1, 5), (2, 10), (3, 900)):
        (polled,) = await place.after(0, feeds)
        assert polled.status == "failed"
        assert says.lower() in polled.problem.lower()
        assert "\n" not in polled.problem
        assert feeds._pulses["news"].failures == failures
        before = came()
        assert await place.after(pause_s - 1, feeds) == []
        assert came() == before
        place.now += timedelta(seconds=1)
    (problem,) = feeds.problems
    assert problem.startswith("feed news: 3 failures in a row, the last: ")
    assert says.lower() in problem.lower()
    assert place.events() == ["feed.opened"]
    assert [entry["event"] for entry in place.logged] == ["feed.failed"] * 3
    assert not any("exc_info" in entry or "exception" in entry for entry in place.logged)


@pytest.mark.parametrize("name", MISBEHAVIOURS)
def test_a_server_that_misbehaves_is_left_alone_for_longer_and_longer(
    place: Place, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    behave, says, scheme = MISBEHAVIOURS[name]

    async def run() -> None:
        async with Web(behave) as web:
            timeout_s = 0.4 if "0.4 s" in says else 20
            feeds = place.feeds(f"{scheme}://127.0.0.1:{web.port}/", timeout_s=timeout_s)
            await rests(place, feeds, says, lambda: web.came)
            assert web.came == 3

    asyncio.run(run())
    assert "Traceback" not in caplog.text


def test_a_server_that_refuses_is_left_alone(place: Place) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        asyncio.run(rests(place, place.feeds(url), "Connection refused", lambda: 0))


def test_a_name_that_is_not_known_is_left_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    feeds = place.feeds("http://news.example/")
    asyncio.run(rests(place, feeds, "Name or service not known", lambda: 0))


def test_a_name_that_is_none_is_left_alone(place: Place) -> None:
    asyncio.run(rests(place, place.feeds("http://a..b/"), "", lambda: 0))


@pytest.mark.skipif(OPENSSL is None, reason="needs openssl to make a certificate")
def test_a_certificate_that_nobody_signed_is_refused(place: Place, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *(str(OPENSSL), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-keyout", str(key), "-out", str(certificate), "-days", "2"),
            *("-subj", "/CN=127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)

    async def run() -> None:
        async with Web(answering(ok(FACT)), tls) as web:
            feeds = place.feeds(f"https://127.0.0.1:{web.port}/")
            await rests(place, feeds, "TLS failed: self-signed certificate", lambda: 0)

    asyncio.run(run())


def test_the_first_good_answer_closes_the_circuit(place: Place) -> None:
    async def run() -> None:
        async with Web(answering(then="resets")) as web:
            feeds = place.feeds(f"http://127.0.0.1:{web.port}/")
            await rests(place, feeds, "reset", lambda: web.came)
            web.behave = answering(ok(FACT))
            (polled,) = await place.after(0, feeds)
            assert polled.status == "new"
            assert feeds.problems == ()

    asyncio.run(run())
    assert sorted(place.events()) == ["feed.closed", "feed.opened"]


class Broken(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise RuntimeError("a mistake of ours")


def test_an_error_that_nobody_foresaw_rests_too_and_is_logged(place: Place) -> None:
    feeds = place.feeds("http://news.example/")
    feeds._transport = Broken()
    (polled,) = asyncio.run(place.after(0, feeds))
    assert polled.problem == "unexpected RuntimeError: a mistake of ours; see the log"
    place.now += timedelta(seconds=4)
    assert not feeds.is_due("news")
    assert [entry["event"] for entry in place.logged] == ["feed.unexpected", "feed.failed"]


# --- what a server says ------------------------------------------------------------------------


def one_poll(place: Place, *answers: bytes, **more: object) -> tuple[list[Polled], Feeds]:
    """One poll for each answer, ten minutes apart."""

    async def run() -> tuple[list[Polled], Feeds]:
        async with Web(answering()) as web:
            feeds, polled = place.feeds(f"http://127.0.0.1:{web.port}/", **more), []
            for answer in answers:
                web.behave = answering(answer)
                polled += await place.after(600, feeds)
            return polled, feeds

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("said", "pause_s"),
    [
        ("120", 120),
        (format_datetime(START + timedelta(seconds=720), usegmt=True), 120),
        ((START + timedelta(seconds=720)).strftime("%A, %d-%b-%y %H:%M:%S GMT"), 120),
        ((START + timedelta(seconds=720)).strftime("%a %b %d %H:%M:%S %Y"), 120),
        (format_datetime(START + timedelta(days=400), usegmt=True), 3600),
        (format_datetime(START - timedelta(days=400), usegmt=True), 5),
        ("9" * 6000, 3600),
        ("-7", 5),
        ("soon", 5),
        ("\xb2", 5),
        ("", 5),
    ],
)
def test_retry_after_is_kept_to_as_number_and_as_date(
    place: Place, said: str, pause_s: float
) -> None:
    head = f"HTTP/1.1 503 Busy\r\nretry-after: {said}\r\ncontent-length: 0\r\n\r\n"
    (polled,), feeds = one_poll(place, head.encode("latin-1"))
    assert polled.problem == "answers 503 Busy"
    assert feeds._pulses["news"].due == place.seconds() + pause_s


def test_waits_that_are_asked_for_are_bounded() -> None:
    assert wait_asked("Fri, 31 Dec 9999 23:59:59 GMT", START) == 3600
    assert wait_asked("Mon, 01 Jan 0001 00:00:00 GMT", START) == 0


def test_gzip_in_several_members_is_read_to_its_end(place: Place) -> None:
    other = FACT.replace(b"1", b"2")
    body = gzip.compress(FACT) + gzip.compress(other)
    (polled,), _ = one_poll(place, ok(body, b"content-encoding: gzip"))
    assert polled.status == "new"
    assert place.layout.archived(polled.batch).read_bytes() == FACT + other


def test_nonsense_after_gzip_is_a_failure(place: Place) -> None:
    body = gzip.compress(FACT) + b"nonsense"
    (polled,), _ = one_poll(place, ok(body, b"content-encoding: gzip"))
    assert "broken gzip" in polled.problem


def test_a_mark_that_cannot_be_sent_back_is_not(place: Place) -> None:
    marked = ok(FACT, b'etag: "\xe9"', b"last-modified: \xe9")
    polled, _ = one_poll(place, marked, marked)
    assert [p.status for p in polled] == ["new", "unchanged"]


@pytest.mark.parametrize("key", [b"secret\nsecond", b"s\xe9cret", b"", b"sec ret"])
def test_a_key_that_is_none_is_not_told(place: Place, tmp_path: Path, key: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(key)
    (polled,), _ = one_poll(place, ok(FACT), key_file=file)
    assert polled.problem == f"key_file {file} does not hold one key; correct it"


def test_a_feed_called_like_what_is_erased_does_not_meet_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_http, "is_public", lambda _: True)
    place = Place(tmp_path, "guarded")
    batch = place.layout.archived("0" * 32)
    batch.write_bytes(FACT)

    async def erases(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ok(FACT * 2)[:-9])
        await writer.drain()
        await asyncio.sleep(0.1)
        list(_blank(batch, [(0, len(FACT) - 1)], b"{}", lambda *_: None))
        writer.write(FACT[-9:])
        await writer.drain()

    async def run() -> Polled:
        async with Web(erases) as web:
            url = f"http://127.0.0.1:{web.port}/"
            (polled,) = await place.after(0, place.feeds(url, name="erased"))
            return polled

    polled = asyncio.run(run())
    assert polled.status == "new"
    assert place.layout.archived(polled.batch).read_bytes() == FACT * 2
    assert json.loads(batch.read_bytes()) == {}
    place.ledger.close()


# --- which addresses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("::127.0.0.1", False),  # IPv4-compatible, also of public addresses
        ("::8.8.8.8", False),
        ("::ffff:0:127.0.0.1", False),  # IPv4-translated
        ("fec0::1", False),  # site-local
        ("feff::1", False),
        ("64:ff9b:1::7f00:1", False),  # NAT64 of a network's own
        ("64:ff9b:1:ffff::8.8.8.8", False),
        ("64:ff9b::10.0.0.1", False),  # NAT64, well known
        ("64:ff9b::192.168.1.1", False),
        ("64:ff9b::8.8.8.8", True),
        ("2002:0a00:0001::1", False),  # 6to4
        ("2002:c0a8:0101::1", False),
        ("2002:0808:0808::1", True),
        ("2001:0:7f00:1::f7f7:f7f7", False),  # Teredo: a private server
        ("2001:0:0808:0808::f5ff:fffe", False),  # Teredo: a private client
        ("5f00::1", False),
        ("4000::1", False),
        ("3fff::1", False),
        ("192.0.0.192", False),
        ("192.88.99.1", False),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
    ],
)
def test_an_address_is_public_only_where_it_leads_to_the_internet(
    address: str, public: bool
) -> None:
    assert is_public(address) is public
