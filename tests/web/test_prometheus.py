"""A real Prometheus (Debian's) scrapes a real daemon and takes the alerts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.live import free_port
from tests.support.page_site import PageSite

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
ALERTS, DASHBOARD = DEPLOY / "alerts.yml", DEPLOY / "grafana" / "palorad.json"

pytestmark = [pytest.mark.page, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def prometheus(page: PageSite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """It scrapes the page each second."""
    root, port = tmp_path_factory.mktemp("prometheus"), free_port()
    scraped = {"job_name": "palorad", "static_configs": [{"targets": [page.url[7:]]}]}
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [scraped],
    }
    (root / "prometheus.yml").write_text(yaml.safe_dump(settings))
    with (root / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                *("prometheus", f"--config.file={root / 'prometheus.yml'}"),
                *(f"--storage.tsdb.path={root / 'data'}", f"--web.listen-address=127.0.0.1:{port}"),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            until = time.monotonic() + 60
            while not _asked(client, 'up{job="palorad"} == 1'):
                assert time.monotonic() < until, (root / "log").read_text()[-2000:]
                time.sleep(0.5)
            yield client
    finally:
        server.kill()
        server.wait()


def _asked(client: httpx.Client, query: str) -> list[Any]:
    try:
        answer = client.get("/api/v1/query", params={"query": query}).json()
    except (httpx.TransportError, ValueError):
        return []
    assert answer["status"] == "success", answer
    found: list[Any] = answer["data"]["result"]
    return found


def test_every_figure_of_the_alerts_is_scraped(prometheus: httpx.Client) -> None:
    used = set(re.findall(r"palorad_\w+", ALERTS.read_text()))
    # Of feeds and of failed stages there are samples once there is one.
    for name in sorted(used - {"palorad_feed_circuit_open"}):
        assert _asked(prometheus, name), name
    assert len(_asked(prometheus, 'count by (__name__) ({__name__=~"palorad_.+"})')) > 25


def test_every_query_of_the_dashboard_returns_data(prometheus: httpx.Client) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(queries) > 20
    for query in queries:
        until = time.monotonic() + 10  # a rate needs two samples
        while not _asked(prometheus, query) and time.monotonic() < until:
            time.sleep(0.5)
        assert _asked(prometheus, query), query


def test_every_alert_is_evaluated_and_the_one_that_holds_is_pending(
    prometheus: httpx.Client,
) -> None:
    expected = {  # a replica is behind for as long as a switch takes
        "PaloradUndecided": "pending",
        "PaloradLoopStuck": "inactive",
        "PaloradReplicaBehind": "inactive",
    }
    until = time.monotonic() + 30
    while True:
        (group,) = prometheus.get("/api/v1/rules").json()["data"]["groups"]
        state = {rule["name"]: rule["state"] for rule in group["rules"]}
        if state.items() >= expected.items() or time.monotonic() > until:
            break
        time.sleep(0.5)
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    assert {name: state[name] for name in expected} == expected


def test_promtool_takes_the_alerts() -> None:
    promtool = shutil.which("promtool")
    assert promtool is not None
    subprocess.run([promtool, "check", "rules", str(ALERTS)], check=True, capture_output=True)
