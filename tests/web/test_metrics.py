"""What Prometheus is told of a running daemon."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import httpx
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.page_site import PageSite

ROOT = Path(__file__).resolve().parents[2]


def scrape(client: httpx.Client) -> Mapping[tuple[str, ...], float]:
    """Each sample's value by its name and the values of its labels, these by their names."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_figures_are_those_of_the_ledger(page: PageSite, client: httpx.Client) -> None:
    told = scrape(client)
    with page.reading() as ledger:
        totals, head = ledger.batches.totals(), ledger.events.head()[0]
        states = [ledger.batches.state(batch.id).value for batch in ledger.batches.latest()]
        target = ledger.revisions.target().number
    assert told["palorad_quarantined_lines",] == totals["quarantined"] > 0
    assert told["palorad_revision_target",] == target
    assert told["palorad_events_total",] == head
    for state in set(states):
        assert told["palorad_batches", state] == states.count(state)
    assert told["palorad_batches", "failed"] == 0
    assert told["palorad_verdicts_total", "fail"] == 1
    assert told["palorad_verdicts_total", "inconclusive"] == 1
    assert told["palorad_stage_seconds_count", "train"] == 4
    assert told["palorad_stage_seconds_sum", "train"] > 0
    assert told["palorad_swap_seconds_count",] >= 2
    low, share, high = (
        told[f"palorad_suite_share{bound}", "candidate", "reasoning", "word problems"]
        for bound in ("_low", "", "_high")
    )
    assert low < share < high


def test_what_each_replica_serves_is_told(page: PageSite, client: httpx.Client) -> None:
    page.until(lambda: client.get("/api/replicas").json()["replicas"][0]["ready"], "serving")
    told = scrape(client)
    url = page.settings.server.urls[0]
    assert told["palorad_loop_up",] == told["palorad_replica_ready", url] == 1
    assert told["palorad_replica_revision", url] == told["palorad_revision_target",]
    assert any(key[0] == "palorad_adapter_loaded" and key[-1] == url for key in told)


def test_what_the_server_says_of_its_adapters_is_passed_on(
    page: PageSite, client: httpx.Client
) -> None:
    url = page.settings.server.urls[0]
    with page.reading() as ledger:
        live = ledger.revisions.target().served_name
    asked = {"model": "palora-live", "prompt": ["Where?"], "max_tokens": 4}
    count = ("palorad_adapter_requests_total", live, url)
    page.until(lambda: count in scrape(client), "hearing of it")
    before = scrape(client)[count]
    for _ in range(3):
        assert httpx.post(f"{url}/v1/completions", json=asked).is_success
    page.until(lambda: scrape(client)[count] == before + 3, "counting it")
    told = scrape(client)
    busy = [key for key, value in told.items() if key[0] == "palorad_adapter_busy" and value]
    assert sorted(key[1][:14] for key in busy) == ["palora-000001-", "palora-000002-"]
    assert told["palorad_adapter_slots", url] == 4
    assert ("palorad_adapter_requests_in_flight", live, url) in told


def test_a_person_s_wait_counts_apart(page: PageSite, client: httpx.Client) -> None:
    before = scrape(client)
    assert before["palorad_decision_wait_seconds_count",] == 0
    decided = {"about": "4", "because": "no such place"}
    done = client.post("/api/do/reject", json=decided, headers=page.operator())
    assert done.status_code == 200
    count = ("palorad_decision_wait_seconds_count",)
    page.until(lambda: scrape(client)[count] == 1, "counting it")
    after = scrape(client)
    assert after["palorad_verdicts_total", "fail"] == before["palorad_verdicts_total", "fail"]
    assert after["palorad_stage_seconds_count", "evaluate"] == 4


def test_every_alert_is_on_a_figure_that_there_is_and_says_what_to_do(client: httpx.Client) -> None:
    names = {sample[0] for sample in scrape(client)}
    families = {f.name for f in text_string_to_metric_families(client.get("/metrics").text)}
    (group,) = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())["groups"]
    advice = (ROOT / "docs" / "operations.md").read_text()
    assert len(group["rules"]) >= 10
    for rule in group["rules"]:
        used = set(re.findall(r"palorad_\w+", rule["expr"]))
        assert used
        # Without a feed there is no sample of it, but it is declared.
        assert used <= names | families, rule["alert"]
        assert f"| `{rule['alert']}` |" in advice


def test_names_are_prometheus_s(client: httpx.Client) -> None:
    for family in text_string_to_metric_families(client.get("/metrics").text):
        assert family.name.startswith("palorad_")
        assert family.documentation
        for sample in family.samples:
            assert not sample.name.endswith("_ms")
            if family.type == "counter":
                assert sample.name.endswith("_total")
