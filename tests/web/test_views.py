"""What the page and its JSON say of a running daemon."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from daemon.web.render import PAGES
from tests.support.crashing import Forked
from tests.support.page_site import PageSite
from tests.support.page_steps import question
from tests.web.conftest import MARKUP

VIEWS = ("now", "timeline", "plans", "plans/1", "revisions/1", "facts", "quarantine", "retention")
OTHERS = ("feeds", "replicas", "capacity", "probe", "openapi.json")


def get(client: httpx.Client, path: str, **asked: Any) -> Any:
    answer = client.get(path, params=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    "path", [href for href, _ in PAGES] + ["/plans/2", "/revisions/0", "/login"]
)
def test_every_page_stands_by_itself(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert "<h1>" in answer.text
    assert not re.search(r"<script(?![^>]*\ssrc=\"/static/)|\son\w+=|style=", answer.text)
    assert not re.search(r"(?:src|href|action)=\"(?!/|#)", answer.text)


@pytest.mark.parametrize("view", VIEWS + OTHERS)
def test_every_view_is_json_too_and_its_schema_is_published(
    client: httpx.Client, view: str
) -> None:
    said = get(client, f"/api/{view}")
    paths = get(client, "/api/openapi.json")["paths"]
    if view != "openapi.json":
        template = re.sub(r"/1$", "/{number}", f"/api/{view}")
        schema = paths[template]["get"]["responses"]["200"]["content"]["application/json"]
        assert schema["schema"]["$ref"].rpartition("/")[2].endswith(("View", "Page"))
        assert said


def test_now_says_what_answers_since_when_and_what_needs_a_person(client: httpx.Client) -> None:
    now = get(client, "/api/now")
    assert now["status"]["target"]["number"] == 2
    assert now["because"] == "plan 3 passed"
    assert [plan["plan"] for plan in now["undecided"]] == [4]
    assert all(replica["ready"] for replica in now["status"]["daemon"]["replicas"])
    text = client.get("/").text
    assert "Revision 2" in text
    assert "Plan 4</a> is inconclusive" in text


def test_any_moment_has_an_answer_to_what_was_live(client: httpx.Client) -> None:
    first, second = (get(client, f"/api/revisions/{n}")["revision"]["created_at"] for n in (1, 2))

    def at(moment: str, later_s: float = 0.0) -> Any:
        shifted = datetime.fromisoformat(moment) + timedelta(seconds=later_s)
        return get(client, "/api/live-at", moment=shifted.isoformat())["revision"]

    assert at(first, -0.001) == 0
    assert at(first) == at(second, -0.001) == 1
    assert at(second) == at(second, 1e6) == 2
    assert get(client, "/api/live-at", moment="2001-01-01")["revision"] is None
    assert client.get("/api/live-at", params={"moment": "yesterday"}).status_code == 409


def test_a_rejection_shows_its_items_beside_the_former_answers(client: httpx.Client) -> None:
    plan = get(client, "/api/plans/2")
    (suite,) = plan["failing"]
    assert (suite["suite"], suite["count"]) == ("word problems", 14)
    item = suite["items"][0]
    assert item["base"] == item["live"] != item["candidate"]
    assert item["expected"] in item["base"]
    text = client.get("/plans/2").text
    assert "Newly failing in word problems" in text
    assert text.count('class="intervals"') == len(plan["verdict"]["suites"])


def test_a_fact_tells_its_whole_story(client: httpx.Client) -> None:
    (found,) = get(client, "/api/facts", q="capital of Bhutan")["facts"][:1]
    told = get(client, f"/api/facts/{found['id']}")
    assert told["fact"]["answer"] == "Thimphu"
    assert told["batch"]["name"] == "himalaya.jsonl"
    assert told["taught_by"] == 3, "the target's adapter, which was trained on from plan 1's"
    assert [(p["plan"], p["learnt"], p["revision"]) for p in told["plans"]] == [(1, True, 1)]
    assert client.get("/facts/none-of-that-id").status_code == 404
    (unknown,) = get(client, "/api/facts", q="capital of Atlantis")["facts"][:1]
    assert get(client, f"/api/facts/{unknown['id']}")["taught_by"] is None


def test_the_story_names_the_teacher_that_the_ledger_names(
    page: PageSite, client: httpx.Client
) -> None:
    with page.reading() as ledger:
        lineage = ledger.revisions.target().lineage
        facts = [fact.id for _, fact in ledger.listings.latest_facts(10)]
        taught = {fact: ledger.knowledge.taught_by(fact, lineage) for fact in facts}
    assert {*taught.values()} == {None, 3}
    assert {fact: get(client, f"/api/facts/{fact}")["taught_by"] for fact in facts} == taught


def test_the_heat_map_has_each_batch_under_each_revision(client: httpx.Client) -> None:
    view = get(client, "/api/retention")
    assert view["revisions"] == [1, 2]
    rows = {row["name"]: row for row in view["rows"]}
    assert rows["himalaya.jsonl"]["asked"] == [3, 3]
    assert rows["mixed.jsonl"]["shares"][0] is None
    assert [trend["role"] for trend in view["trends"]] == ["reasoning", "locality"]


def test_what_a_fact_says_is_text_whatever_it_says(client: httpx.Client) -> None:
    for path in ("/facts", "/facts?q=script+alert", "/quarantine", "/timeline"):
        text = client.get(path).text
        assert MARKUP not in text
        assert "\u202e" not in text
    assert "&lt;script&gt;alert(1)" in client.get("/facts").text
    assert r"a\u202eb" in client.get("/facts").text


def test_a_lost_replica_is_seen_and_its_return_too(page: PageSite, client: httpx.Client) -> None:
    page.replica.kill()
    page.replica.wait()

    def ready() -> bool:
        return bool(get(client, "/api/replicas")["replicas"][0]["ready"])

    page.until(lambda: not ready(), "seeing it")
    assert "does not answer" in client.get("/").text
    assert get(client, "/api/now")["trouble"]
    page.replica = Forked(page._replica, {}, page.root / "replica.log")
    page.until(ready, "its return")


def test_capacity_says_what_the_next_run_would_be(page: PageSite, client: httpx.Client) -> None:
    view = get(client, "/api/capacity")
    assert view["learnt"] == 4
    assert view["rank"] == view["rank_budget"] == 64
    assert [run["plan"] for run in view["runs"]] == [4, 3, 2, 1]
    assert all(run["train_s"] > 0 and run["evaluate_s"] > 0 for run in view["runs"])
    assert view["next_run"] is None
    assert {"ledger", "adapters", "served"} <= {one["what"] for one in view["stored"]}
    assert client.post("/api/do/pause", json={}, headers=page.operator()).is_success
    page.put("later.jsonl", [json.dumps(question("Peru"))])
    page.until(lambda: get(client, "/api/now")["waiting"] == 1, "taking it in")
    run = get(client, "/api/capacity")["next_run"]
    assert (run["facts"], run["replayed"]) == (1, 4)
    assert run["train_s"] > 0
    now = get(client, "/api/now")
    assert now["next"].startswith("Paused")
    assert client.post("/api/do/resume", json={}, headers=page.operator()).is_success
    page.until(lambda: page._rests("later.jsonl"), "learning it")


def test_a_page_is_read_while_the_ledger_is_written(page: PageSite, client: httpx.Client) -> None:
    """No answer fails or takes a second while a large batch comes in."""
    lines = [f'{{"prompt": "What is {n} called?", "answer": "N{n}"}}' for n in range(3000)]
    get(client, "/api/now")
    assert client.post(
        "/api/do/pause", json={"because": "no learning"}, headers=page.operator()
    ).is_success
    page.put("many.jsonl", lines)
    slowest, waiting = 0.0, 0
    while waiting < len(lines):
        began = time.monotonic()
        waiting = get(client, "/api/now")["waiting"]
        get(client, "/api/facts", q="capital")
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 2.0
