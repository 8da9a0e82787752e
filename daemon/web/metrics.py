"""`/metrics`: what the ledger and the daemon's loop know, as Prometheus reads it."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from daemon.ledger.ledger import Ledger
from daemon.views.counts import Counts, Spans
from daemon.views.status import DaemonView
from daemon.web import adapters
from daemon.web.desk import Desk
from daemon.web.gathering import Gathering
from policies.gate.records import Rate
from policies.records import BatchState, PlanState

EVERY_S: Final = 2.0
PIECE: Final = 1000
# Between two pieces of a long history others have the interpreter to themselves.
BREATH_S: Final = 0.005
_REVISION: Final = re.compile(r"palora-(\d{6})-")


def routes(figures: Figures) -> APIRouter:
    """The route over these figures."""
    router = APIRouter()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(figures)

    @router.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router


class Figures(Collector):
    """Collects at each scrape. What takes a walk over the ledger is gathered beside the scrapes:
    it is a few seconds old while a large ledger changes, and there is none of it while a page
    that has just begun still follows the history."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._counts = Counts()
        self._version: object = None
        self._waiting_since: datetime | None = None
        self.gathering = Gathering(self._gather, EVERY_S, "figures")
        self.adapters = Gathering(
            lambda _: adapters.told_by_replicas(desk.settings), adapters.EVERY_S, "adapters"
        )

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand: names are known once something is collected."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Every figure."""
        if gathered := self.gathering.latest():
            yield from gathered
            since, now = self._waiting_since, self._desk.wall()
            age = 0.0 if since is None else (now - since).total_seconds()
            yield _gauge("oldest_waiting_fact_age_seconds", "how long the first of them waits", age)
        yield from self._disk()
        with self._desk.reading() as ledger:
            yield _gauge(
                "revision_target", "number of the target", ledger.revisions.target().number
            )
            stages = [lease.step.value for lease in ledger.steps.leases()]
            yield _by("children", "children at work", "stage", {s: stages.count(s) for s in stages})
            yield _gauge("paused", "1 while paused", int(ledger.meta.paused))
        yield from _loop(self._desk.live.now())
        yield from adapters.families(self.adapters.known or {}, self._desk.settings.model.name)

    def _gather(self, former: tuple[Metric, ...] | None) -> tuple[Metric, ...]:
        """In the gathering's thread: what the ledger tells, read again once it has changed."""
        with self._desk.reading() as ledger:
            version = ledger.db.version
            if former is None or version != self._version:
                while self._counts.follow(ledger, PIECE):
                    time.sleep(BREATH_S)
                former = (*self._stocks(ledger), *_gate(ledger), *_events(self._counts))
                self._version = version
            return former

    def _disk(self) -> Iterator[Metric]:
        settings = self._desk.settings
        yield _gauge("ledger_bytes", "the ledger's file", settings.layout.ledger.stat().st_size)
        free = shutil.disk_usage(settings.state_dir).free
        yield _gauge("disk_free_bytes", "room where the state lies", free)

    def _stocks(self, ledger: Ledger) -> Iterator[Metric]:
        totals = ledger.batches.totals()
        waiting, self._waiting_since = ledger.listings.waiting()
        states = dict.fromkeys(BatchState, 0) | ledger.listings.batch_states()
        plans = dict.fromkeys(PlanState, 0) | ledger.listings.plan_states()
        yield _gauge("facts", "facts admitted", totals["accepted"] - totals["known"])
        yield _gauge("facts_waiting", "facts that wait to be learnt", waiting)
        unlearnt = ledger.facts.unlearnt_count()
        yield _gauge("facts_not_learnt", "facts given up after all tries", unlearnt)
        yield _gauge("quarantined_lines", "lines in quarantine", totals["quarantined"])
        yield _by("batches", "batches", "state", {str(k): v for k, v in states.items()})
        yield _by("plans", "plans", "state", {str(k): v for k, v in plans.items()})


def _gate(ledger: Ledger) -> Iterator[Metric]:
    """The latest verdict, suite by suite, with the bounds of each interval."""
    verdict = ledger.steps.latest_verdict()
    labels = ["suite", "role", "model"]
    share = GaugeMetricFamily(
        "palorad_suite_share", "share answered right, by the latest verdict", labels=labels
    )
    low = GaugeMetricFamily("palorad_suite_share_low", "its lower bound, 95 %", labels=labels)
    high = GaugeMetricFamily("palorad_suite_share_high", "its upper bound, 95 %", labels=labels)
    items = GaugeMetricFamily("palorad_gate_items", "items that it used", labels=["suite", "role"])
    for suite in verdict.suites if verdict else ():
        items.add_metric([suite.suite, suite.role.value], suite.items_used)
        rates: Mapping[str, Rate | None] = {
            "base": suite.base,
            "live": suite.live,
            "candidate": suite.candidate,
        }
        for model, rate in rates.items():
            if rate is not None and rate.items:
                named = [suite.suite, suite.role.value, model]
                share.add_metric(named, rate.value)
                low.add_metric(named, rate.low)
                high.add_metric(named, rate.high)
    yield from (share, low, high, items)


def _events(counts: Counts) -> Iterator[Metric]:
    outcomes = dict.fromkeys(("pass", "fail", "inconclusive"), 0) | counts.verdicts
    yield _total("verdicts", "verdicts of the gate", "outcome", outcomes)
    stages = dict.fromkeys(("probe", "train", "evaluate"), 0) | counts.failures
    yield _total("stage_failures", "stages that failed", "stage", stages)
    yield _total("feed_circuit_opened", "feeds that began to rest", "feed", counts.feed_failures)
    rolled_back = CounterMetricFamily("palorad_plans_rolled_back", "plans taken out of service")
    rolled_back.add_metric([], counts.rollbacks)
    yield rolled_back
    events = CounterMetricFamily("palorad_events", "events in the history")
    events.add_metric([], counts.seq)
    yield events
    yield _spans("stage_seconds", "time of children", counts.stages, "stage")
    yield _spans("swap_seconds", "from a moved target to its being served", counts.swaps)
    yield _spans("decision_wait_seconds", "until a person had decided", counts.decisions)


def _loop(live: DaemonView | None) -> Iterator[Metric]:
    """What only the running loop knows."""
    yield _gauge("loop_up", "1 while the daemon's loop answers", int(live is not None))
    if live is None:
        return
    yield _gauge("trouble", "lines of trouble in the status", len(live.trouble))
    replicas = {r.url: r for r in live.replicas}
    ready = {url: int(r.ready) for url, r in replicas.items()}
    yield _by("replica_ready", "1 where a replica answers from the target", "replica", ready)
    active = {url: number(r.active) for url, r in replicas.items()}
    yield _by("replica_revision", "revision that a replica answers from", "replica", active)
    verified = {
        url: r.verified_at.timestamp() for url, r in replicas.items() if r.verified_at is not None
    }
    yield _by("replica_verified_timestamp_seconds", "when it was verified", "replica", verified)
    loaded = GaugeMetricFamily(
        "palorad_adapter_loaded", "1 for each adapter in a replica", labels=["replica", "adapter"]
    )
    for url, replica in replicas.items():
        for name in replica.loaded:
            loaded.add_metric([url, name], 1)
    yield loaded
    failing = {feed.name: feed.failures for feed in live.feeds}
    yield _by("feed_failures", "failures in a row", "feed", failing)
    resting = {feed.name: int(feed.open) for feed in live.feeds}
    yield _by("feed_circuit_open", "1 while a feed is asked less often", "feed", resting)


def number(active: str | None) -> float:
    """The revision's number in the name that a replica answers from: 0 is the base, -1 nothing."""
    if active is None:
        return -1
    found = _REVISION.match(active)
    return int(found[1]) if found else 0


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"palorad_{name}", what, value=value)


def _by(name: str, what: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"palorad_{name}", what, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _total(name: str, what: str, label: str, values: Mapping[str, float]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"palorad_{name}", what, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _spans(name: str, what: str, spans: Spans, label: str = "") -> SummaryMetricFamily:
    family = SummaryMetricFamily(f"palorad_{name}", what, labels=[label] if label else [])
    for key, count in spans.count.items():
        family.add_metric([key] if label else [], count, spans.seconds[key] / 1000)
    if not label and not spans.count:
        family.add_metric([], 0, 0.0)
    return family
