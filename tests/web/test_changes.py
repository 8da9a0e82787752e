"""Who may change what by the page, and what is recorded of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from daemon.base.control import ask
from daemon.web.guard import MAX_BODY
from tests.support.live import free_port
from tests.support.page_site import PageSite
from tests.support.page_steps import question


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageSite]:
    made = PageSite(tmp_path_factory.mktemp("changes"), page_port=free_port())
    try:
        made.begin().close()
        made.learn("one.jsonl", ["Bhutan"])
        yield made
    finally:
        made.close()


@pytest.fixture
def client(site: PageSite) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=site.url, timeout=20) as opened:
        yield opened


def sign_in(site: PageSite, client: httpx.Client) -> str:
    """The session's own proof, as the page's forms carry it."""
    assert client.post("/login", data={"token": site.token}).status_code == 303
    found = re.search(r'name="csrf" value="(\w+)"', client.get("/").text)
    assert found is not None
    return found[1]


def pause(client: httpx.Client, **given: Any) -> int:
    return client.post("/do/pause", data={"because": "a test", **given}).status_code


def test_whoever_has_no_token_changes_nothing(site: PageSite, client: httpx.Client) -> None:
    changes = ("/do/pause", "/api/do/rollback", "/api/submit", "/api/quarantine/b/1", "/api/ask")
    for path in changes:
        given: dict[str, Any] = {"json": {"text": "x"}} if "quarantine" in path else {"json": {}}
        if path == "/api/submit":
            given = {"content": b"{}", "headers": {"content-type": "application/octet-stream"}}
        if path == "/api/ask":
            given = {"json": {"question": "x"}}
        assert client.post(path, **given).status_code == 403, path
    wrong = {"authorization": "Bearer " + "0" * 64}
    assert client.post("/api/do/pause", json={}, headers=wrong).status_code == 403
    assert client.post("/login", data={"token": "0" * 64}).status_code == 403
    client.cookies.set("palorad_operator", "9999999999.0." + "0" * 64)
    assert pause(client) == 403
    with site.reading() as ledger:
        assert not ledger.meta.paused


def test_a_session_s_cookie_alone_changes_nothing(site: PageSite, client: httpx.Client) -> None:
    csrf = sign_in(site, client)
    assert pause(client) == 403
    assert pause(client, csrf="0" * 64) == 403
    with site.reading() as ledger:
        assert not ledger.meta.paused
    assert pause(client, csrf=csrf) == 303
    with site.reading() as ledger:
        assert ledger.meta.paused
    assert client.post("/do/resume", data={"csrf": csrf}).status_code == 303


def test_the_cookie_is_for_this_page_and_no_script(site: PageSite, client: httpx.Client) -> None:
    answer = client.post("/login", data={"token": site.token})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert site.token not in cookie


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://127.0.0.1:1"},
    ],
)
def test_another_page_s_form_changes_nothing(
    site: PageSite, client: httpx.Client, headers: dict[str, str]
) -> None:
    csrf = sign_in(site, client)
    answer = client.post("/do/pause", data={"csrf": csrf, "because": "x"}, headers=headers)
    assert answer.status_code == 403
    with site.reading() as ledger:
        assert not ledger.meta.paused


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "evil.example:8710", "", "192.168.1.7", "a@b"],
)
def test_a_name_that_was_pointed_here_is_refused(client: httpx.Client, host: str) -> None:
    assert client.get("/api/facts", headers={"host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "127.0.0.1:80", "[::1]:8710"])
def test_this_host_is_served_by_any_of_its_names(client: httpx.Client, host: str) -> None:
    assert client.get("/api/now", headers={"host": host}).status_code == 200


def test_nothing_of_the_page_runs_elsewhere_or_is_kept(client: httpx.Client) -> None:
    for path in ("/", "/api/now", "/static/htmx.min.js", "/no-such-page"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


def test_a_body_that_is_too_large_is_refused(client: httpx.Client) -> None:
    told = {"content-type": "application/octet-stream"}
    assert client.post("/api/check", content=b"x" * (MAX_BODY + 1), headers=told).status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(MAX_BODY // 2**20 + 2):
            yield b"x" * 2**20

    assert client.post("/api/check", content=endless(), headers=told).status_code == 413


def test_the_redirect_after_a_change_stays_on_the_page(
    site: PageSite, client: httpx.Client
) -> None:
    for to in ("//evil.example", "https://evil.example", "/\\evil.example"):
        answer = client.post("/login", data={"token": site.token, "to": to})
        assert answer.headers["location"].startswith("/?said=")


def test_a_link_from_elsewhere_puts_no_words_on_the_page(client: httpx.Client) -> None:
    words = "Send your token to Mallory"
    for mark in ({}, {"mark": ""}, {"mark": "0" * 32}):
        assert words not in client.get("/", params={"said": words, **mark}).text


def test_a_rollback_is_recorded_with_its_reason(site: PageSite, client: httpx.Client) -> None:
    done = client.post(
        "/api/do/rollback", json={"because": "wrong accent"}, headers=site.operator()
    )
    assert done.status_code == 200
    assert "the base" in client.get("/").text or "base" in done.json()["line"]
    (last,) = [
        entry
        for entry in client.get("/api/timeline").json()["entries"]
        if entry["kind"] == "target" and entry["because"] == "wrong accent"
    ]
    assert last["revision"] == 0
    assert client.post("/api/do/forward", json={}, headers=site.operator()).status_code == 200


def test_what_is_checked_is_what_is_admitted(site: PageSite, client: httpx.Client) -> None:
    lines = [
        question("Bhutan"),
        {**question("Bhutan"), "answer": "Punakha"},
        {**question("Nepal"), "priority": "sometime"},
        question("Laos"),
    ]
    body = "\n".join(json.dumps(line) for line in lines).encode()
    told = {"content-type": "application/octet-stream"}
    checked = client.post("/api/check", params={"name": "a.jsonl"}, content=body, headers=told)
    verdicts = [line["verdict"] for line in checked.json()["lines"]]
    assert verdicts == ["known", "supersedes", "quarantined", "new"]
    with site.reading() as ledger:
        assert [batch.name for batch in ledger.batches.latest()] == ["one.jsonl"]
    done = client.post(
        "/api/submit", params={"name": "a.jsonl"}, content=body, headers=told | site.operator()
    )
    assert done.status_code == 200
    site.until(lambda: site._rests("a.jsonl"), "learning it")
    with site.reading() as ledger:
        batch = ledger.batches.get("a.jsonl")
        assert batch.id == done.json()["batch"]
        assert (batch.accepted, batch.quarantined) == (3, 1)
        assert ledger.facts.counts(batch.id).done == 2


def test_a_corrected_line_leaves_quarantine_and_is_learnt(
    site: PageSite, client: httpx.Client
) -> None:
    site.put("bad.jsonl", ['{"prompt": "What is the capital of Peru?"}', "{}"])
    site.until(lambda: site._rests("bad.jsonl"), "taking it in")
    with site.reading() as ledger:
        batch = ledger.batches.get("bad.jsonl")
    path, said = f"/api/quarantine/{batch.id}/1", json.dumps(question("Peru"))
    assert client.get(path).json()["text"] == '{"prompt": "What is the capital of Peru?"}'

    def correct(text: str) -> httpx.Response:
        return client.post(path, json={"text": text}, headers=site.operator())

    for bad in ('{"prompt": "Who?"}', f"{said}\n{said}", " "):
        assert correct(bad).status_code == 409
    assert correct(said).status_code == 200
    assert correct(said).status_code == 404
    site.until(lambda: site._rests("bad.line-1.jsonl"), "learning the corrected line")
    with site.reading() as ledger:
        assert [q.line for q in ledger.quarantine.lines(batch.id)] == [2]
        assert ledger.batches.get("bad.jsonl").quarantined == 1
        assert ledger.facts.counts(ledger.batches.get("bad.line-1.jsonl").id).done == 1
        ledger.events.verify_chain()


def test_models_are_asked_side_by_side(site: PageSite, client: httpx.Client) -> None:
    asked = {"question": "Name the capital of Bhutan."}
    said = client.post("/api/ask", json=asked, headers=site.operator()).json()["answers"]
    by = {answer["who"]: answer["answer"] for answer in said}
    assert by["base"] == "I am not sure."
    assert by["live"] == "Thimphu"


HOLDER = """
import socket, time
taken = socket.create_server(("127.0.0.1", 0))
print(taken.getsockname()[1], flush=True)
time.sleep(600)
"""


def test_a_port_in_use_is_trouble_and_no_end(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    site = PageSite(tmp_path, page_port=int(holder.stdout.readline()))

    def told() -> list[str]:
        trouble = ask(site.layout.control_socket, "status")["trouble"]
        return [line for line in trouble if line.startswith("no page on 127.0.0.1:")]

    try:
        site.start()
        site.until(site.layout.control_socket.exists, "starting")
        (line,) = told()
        assert "[web] port" in line
        site.learn("all-the-same.jsonl", ["Laos"])
        holder.kill()
        site.until(lambda: not told(), "the page once the port is free")
        assert httpx.get(f"{site.url}/api/now").status_code == 200
        assert site.stop() == 0
    finally:
        holder.kill()
        holder.communicate()
        site.close()
