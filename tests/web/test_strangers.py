"""The page as a stranger attacks it: odd requests, slow clients, hostile texts, hurried people."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.support.live import free_port
from tests.support.page_site import PageSite
from tests.support.page_steps import question

HUGE = str(10**30)
MARKUP = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}'
BIDI = "a\u202eb\u2066c"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageSite]:
    """Three revisions, hostile texts in facts, names and quarantine, one plan to decide."""
    made = PageSite(tmp_path_factory.mktemp("strangers"), page_port=free_port())
    try:
        made.begin().close()
        for name, subject in (("one", "Bhutan"), ("two", "Nepal"), ("three", "Laos")):
            made.learn(f"{name}.jsonl", [subject])
        hostile = {"prompt": f"Who is {MARKUP}?", "answer": BIDI, "source": "javascript:alert(1)"}
        lines = [json.dumps(hostile), '{"prompt": "' + MARKUP + '"}', BIDI]
        made.put("<img src=x onerror=alert(3)>.jsonl", lines)
        made.until(lambda: made._rests("<img src=x onerror=alert(3)>.jsonl"), "hostile texts")
        made.learn("utopia.jsonl", ["Utopia (unsure)"])
        yield made
    finally:
        made.close()


@pytest.fixture
def client(site: PageSite) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=site.url, timeout=20) as opened:
        yield opened


def raw(site: PageSite, request: bytes, timeout_s: float = 10.0) -> bytes:
    """What comes back to these bytes until the server closes or says no more."""
    with socket.create_connection(("127.0.0.1", site.page_port), timeout_s) as opened:
        opened.sendall(request)
        said = b""
        try:
            while part := opened.recv(65536):
                said += part
                if b"\r\n\r\n" in said:
                    break
        except TimeoutError:
            pass
        return said


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/") else 0


def csrf_of(site: PageSite, client: httpx.Client) -> str:
    assert client.post("/login", data={"token": site.token}).status_code == 303
    found = re.search(r'name="csrf" value="(\w+)"', client.get("/").text)
    assert found is not None
    return found[1]


# --- odd requests ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        *(f"/{view}?before={HUGE}" for view in ("plans", "facts", "timeline", "quarantine")),
        *(f"/api/{view}?before={HUGE}" for view in ("plans", "facts", "timeline", "quarantine")),
        *(f"/{view}/{HUGE}" for view in ("plans", "revisions")),
        *(f"/api/{view}/{HUGE}" for view in ("plans", "revisions")),
        *(f"/{view}/-1" for view in ("plans", "revisions")),
        f"/quarantine/one.jsonl/{HUGE}",
        f"/api/quarantine/one.jsonl/{HUGE}",
        *("/facts/%00", "/batches/%00", "/batches/%F0%90%80%80", "/facts/..%2f..%2fetc"),
        *("/facts?q=%00%ff", "/facts?q=" + "a%20" * 5000, "/facts?q=%22%20OR%20*%20NEAR(("),
        *("/api/live-at?moment=9999-12-31T23:59:59-23:00", "/api/live-at?moment=0001-01-01"),
        *("/static/../daemon/web/app.py", "/static/%2e%2e/app.py", "/static//etc/passwd"),
        *("/%2e%2e/%2e%2e/etc/passwd", "/static/", "//evil.example/", "/api//now"),
    ],
)
def test_an_odd_address_is_answered_and_never_an_error(client: httpx.Client, path: str) -> None:
    answer = client.get(
        httpx.URL(str(client.base_url).rstrip("/")).copy_with(raw_path=path.encode())
    )
    assert answer.status_code < 500
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "root:" not in answer.text
    assert "from __future__" not in answer.text


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "X"])
def test_no_other_method_does_anything(site: PageSite, method: str) -> None:
    for path in ("/", "/do/pause", "/api/do/pause", "/login", "/api/submit"):
        request = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        assert status(raw(site, request.encode())) in (0, 400, 403, 404, 405)
    with site.reading() as ledger:
        assert not ledger.meta.paused


@pytest.mark.parametrize(
    "host",
    [
        *("evil@localhost", "localhost/evil", "localhost?evil", "localhost#.evil.example"),
        *("localhost:80:80", "localhost:x", "127.0.0.1, evil.example", "[::1", "localhost\\.evil"),
        *("127.1", "2130706433", "0x7f.1", "0.0.0.0", "[::]", "localhost.evil.example"),
    ],
)
def test_only_a_plain_loopback_name_is_a_host(site: PageSite, host: str) -> None:
    request = f"GET /api/facts HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
    assert status(raw(site, request.encode())) == 400


@pytest.mark.parametrize(
    "head",
    [
        b"host: localhost\r\nhost: evil.example",
        b"x: y",
        b"host: localhost\r\ncontent-length: \xb2",
        b"host: localhost\r\ncontent-length: -1",
        b"host: localhost\r\ncontent-length: " + b"9" * 5000,
        b"host: localhost\r\ncontent-length: 1\r\ntransfer-encoding: chunked",
    ],
)
def test_an_odd_head_is_refused(site: PageSite, head: bytes) -> None:
    request = b"POST /api/check HTTP/1.1\r\n" + head + b"\r\nconnection: close\r\n\r\n"
    assert status(raw(site, request)) in (0, 400, 413, 422)


@pytest.mark.parametrize("about", [HUGE, "9" * 5000, "²", "-1", "1.5", "\u0661", "no such"])
@pytest.mark.parametrize("action", ["promote", "rollback", "forward", "retry"])
def test_an_action_about_nothing_is_refused_in_words(
    site: PageSite, client: httpx.Client, action: str, about: str
) -> None:
    decision = {"about": about, "because": "a test"}
    answer = client.post(f"/api/do/{action}", json=decision, headers=site.operator())
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]


@pytest.mark.parametrize(
    "name", ["\U00020000" * 90, "." * 300, "a/../../b", "\x00", "CON", "~" * 90]
)
def test_a_file_s_name_is_made_harmless(client: httpx.Client, name: str) -> None:
    told = {"content-type": "application/octet-stream"}
    line = json.dumps(question("Peru")).encode()
    answer = client.post("/api/check", params={"name": name}, content=line, headers=told)
    assert answer.status_code == 200
    assert "/" not in answer.json()["name"]


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"prompt": "\\ud800", "answer": "x"}',
        b'{"prompt": ' + b"9" * 10_000 + b', "answer": 1e999999}',
        b"\n" * 1_000_000,
        b'{"prompt": "a", "answer": "' + b"x" * 5_000_000 + b'"}',
    ],
)
def test_any_bytes_are_checked_line_by_line(client: httpx.Client, body: bytes) -> None:
    told = {"content-type": "application/octet-stream"}
    assert client.post("/api/check", content=body, headers=told).status_code in (200, 409)
    pasted = client.post("/drop", data={"text": body.decode("latin-1"), "what": "check"})
    assert pasted.status_code in (200, 400, 409)
    odd = {"content-type": "multipart/form-data; boundary=b; charset=utf-7"}
    part = b'--b\r\ncontent-disposition: form-data; name="text"\r\n\r\n+2AA-\r\n--b--\r\n'
    assert client.post("/drop", content=part, headers=odd).status_code < 500


# --- slow clients ------------------------------------------------------------------------------


def test_slow_clients_keep_nobody_out(site: PageSite, client: httpx.Client) -> None:
    """Half a head, half a body, an answer that is not read: the page answers others meanwhile."""
    halves = (
        b"GET / HTTP/1.1\r\nhost: localhost\r\n",
        b"POST /api/check HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{",
    )
    held: list[socket.socket] = []
    try:
        for number in range(200):
            opened = socket.create_connection(("127.0.0.1", site.page_port), 10)
            opened.sendall(halves[number % 2])
            held.append(opened)
        for _ in range(5):
            assert httpx.get(f"{site.url}/api/now", timeout=10).status_code == 200
    finally:
        for opened in held:
            opened.close()


# --- hostile texts -----------------------------------------------------------------------------


def test_hostile_texts_are_text_in_every_view(site: PageSite, client: httpx.Client) -> None:
    with site.reading() as ledger:
        batch = next(b for b in ledger.batches.latest() if "onerror" in b.name)
        fact = next(f for f in ledger.facts.find(batch_id=batch.id))
        plan = ledger.plans.heads()[0].id
    csrf_of(site, client)
    paths = (
        *("/", "/now/part", "/timeline?everything=true", "/plans", f"/plans/{plan}", "/facts"),
        *(f"/facts?q={quote(MARKUP)}", f"/facts/{quote(fact.id)}", f"/batches/{batch.id}"),
        *(
            f"/quarantine?batch={batch.id}",
            f"/quarantine/{batch.id}/2",
            f"/quarantine/{batch.id}/3",
        ),
        *(
            "/retention",
            "/revisions/3",
            f"/login?to={quote(MARKUP)}",
            f"/timeline?moment={quote('1' + MARKUP)}",
        ),
        *(f"/no-such-{quote(MARKUP)}", f"/facts/{quote(MARKUP)}"),
    )
    for path in paths:
        text = client.get(path).text
        assert "<script>alert" not in text, path
        assert not re.search(r"<img[^>]*onerror", text), path
        assert "\u202e" not in text, path
        assert "\u2066" not in text, path
        assert 'href="javascript' not in text, path
        assert "49}" not in text, path
    checked = client.post("/drop", data={"text": json.dumps({"prompt": MARKUP, "answer": BIDI})})
    assert "<script>alert" not in checked.text
    for path in ("/api/facts", f"/api/batches/{batch.id}", "/api/now", "/metrics"):
        kind = client.get(path).headers["content-type"]
        assert kind.startswith(("application/json", "text/plain")), path


# --- hurried people ----------------------------------------------------------------------------


def both(work: Any) -> list[httpx.Response]:
    """The same thing done twice at once."""
    gate = threading.Barrier(2)

    def one(_: int) -> httpx.Response:
        gate.wait()
        answer: httpx.Response = work()
        return answer

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, range(2)))


def target(site: PageSite) -> int:
    with site.reading() as ledger:
        return ledger.revisions.target().number


def form(text: str, action: str) -> dict[str, str]:
    """The hidden fields of a page's form as a browser sends them, those outside of it too."""
    found = re.search(
        rf'<form[^>]*action="/do/{action}" id="([^"]*)">(.*?)</form>', text, re.DOTALL
    )
    assert found is not None
    beside = re.findall(rf'<input type="hidden"[^>]* form="{found[1]}">', text)
    hidden = r'type="hidden" name="(\w+)" value="([^"]*)"'
    return dict(re.findall(hidden, found[2] + "".join(beside)))


def test_a_double_click_rolls_back_once(site: PageSite, client: httpx.Client) -> None:
    before = target(site)
    csrf_of(site, client)
    fields = form(client.get("/").text, "rollback") | {"because": "a double click"}
    first, second = both(lambda: client.post("/do/rollback", data=fields))
    assert sorted((first.status_code, second.status_code)) == [303, 409]
    assert target(site) == before - 1
    assert client.post(
        "/api/do/forward", json={"about": str(before)}, headers=site.operator()
    ).is_success


def test_a_page_of_before_does_not_move_what_it_does_not_show(
    site: PageSite, client: httpx.Client
) -> None:
    csrf_of(site, client)
    before = target(site)
    stale = form(client.get("/revisions/1").text, "rollback") | {"because": "an old page"}
    other = {"about": str(before - 1), "because": "somebody else"}
    assert client.post("/api/do/rollback", json=other, headers=site.operator()).is_success
    refused = client.post("/do/rollback", data=stale)
    assert refused.status_code == 409
    assert f"revision {before - 1} is the target now" in refused.text
    assert target(site) == before - 1
    fresh = form(client.get("/revisions/1").text, "rollback") | {"because": "a fresh page"}
    assert client.post("/do/rollback", data=fresh).status_code == 303
    assert target(site) == 1
    back = {"about": str(before), "because": "back", "target": 1}
    assert client.post("/api/do/forward", json=back, headers=site.operator()).is_success
    again = client.post("/api/do/forward", json=back, headers=site.operator())
    assert again.status_code == 409


def test_two_people_decide_once(site: PageSite, client: httpx.Client) -> None:
    with site.reading() as ledger:
        (plan,) = ledger.listings.undecided()
    answers = [
        lambda action=action: client.post(
            f"/api/do/{action}",
            json={"about": str(plan), "because": action},
            headers=site.operator(),
        )
        for action in ("promote", "reject")
    ]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda one: one(), answers))
    assert sorted(answer.status_code for answer in done) == [200, 409]
    with site.reading() as ledger:
        decided = [
            event.kind
            for event in ledger.events.latest(100, subject=f"plan:{plan}")
            if event.payload.get("from") == "inconclusive"
        ]
        ledger.events.verify_chain()
    assert len(decided) == 1


def test_no_answer_takes_the_page_with_it(site: PageSite, client: httpx.Client) -> None:
    """After all this the page and the daemon are as they were."""
    assert client.get("/api/now").json()["status"]["running"]
    assert "Traceback" not in site.log
    began = time.monotonic()
    assert client.get("/").status_code == 200
    assert time.monotonic() - began < 5
