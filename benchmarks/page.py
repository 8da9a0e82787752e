"""How long the page takes beside a large ledger, while a child computes.

    python -m benchmarks.page --ledger FOLDER

A ledger of `--batches` batches of 100 facts, each learnt by a plan that went live, one line of
each tenth batch in quarantine, and each batch's file in the archive. It is built once and kept in
the folder; a copy of it is served. A daemon process over it serves the page; a process beside it
uses a core, as a training child does. Once the verification that a start makes has ended, a client
measures over HTTP, one request after another:
`page_p95_ms` of each page and its JSON (the 95th percentile, in ms), `page_median_ms`,
`metrics_p95_ms` of `/metrics`, `first_scrape_ms` of the first one after the start, and
`tick_max_s`, the longest time that the daemon's loop took to answer its control socket meanwhile.
On a machine that others use too, `nice -n -10` lets it compete with itself alone; `niceness` says
so.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx

from benchmarks import pages
from benchmarks.planning import EACH, NOW, admit, fact, learn
from daemon.base.control import ask
from daemon.config.layout import Layout
from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.loop import start
from demo.report import machine_in_use, versions_in_use
from demo.setup import free_port
from policies.errors import DaemonUnreachable
from policies.gate.records import (
    ItemResult,
    Outcome,
    Rate,
    Role,
    Scorecard,
    SuiteScore,
    SuiteVerdict,
    Verdict,
)
from policies.records import PlanKind

DOCUMENTED: Final = Path("benchmarks/results/page.json")
PAGE: Final = Path("docs/page.md")
SUITES: Final = ("reasoning", "known facts", "earlier facts")
ITEMS: Final = 400
JUDGED: Final = 40
START_S: Final = 180.0
PAGES: Final = (
    *("/", "/timeline", "/timeline?moment=2027-01-01", "/plans", "/plans/{plan}", "/plans/7"),
    *("/revisions/{plan}", "/revisions/9", "/facts", "/facts?q=capital+of+Republic+0000123"),
    *("/facts?q=Port", "/facts/fact-0000500", "/batches/batch-000005", "/drop", "/quarantine"),
    *("/retention", "/feeds", "/replicas", "/capacity", "/probe"),
    *("/api/now", "/api/timeline", "/api/live-at?moment=2027-01-01", "/api/plans"),
    *("/api/plans/{plan}", "/api/revisions/{plan}", "/api/facts?q=Republic+0000123"),
    *("/api/facts/fact-0000500", "/api/quarantine", "/api/retention", "/api/capacity"),
)


def built(root: Path, batches: int) -> Ledger:
    """A ledger that has learnt so many batches, each by a warm start from the one before."""
    ledger = Ledger.open(root / "ledger.db")
    ledger.db.connection.execute("PRAGMA synchronous=OFF")
    ledger.db.connection.execute("PRAGMA journal_mode=MEMORY")
    ledger.revisions.ensure_base("base", NOW)
    for number in range(batches):
        first = number * EACH
        admit(ledger, f"batch-{number:06}", first, EACH)
        target = ledger.revisions.target()
        plan = ledger.plans.create(
            PlanKind.LEARN,
            parent=target.number,
            replaces=target.lineage,
            fact_ids=[fact(n).id for n in range(first, first + EACH)],
            replays=min(first, 2000),
            rank=128,
            seed=0,
            because="benchmark",
            now=NOW,
        )
        learn(ledger, plan)
    return ledger


def judge(ledger: Ledger, plans: int) -> None:
    """The latest plans have verdicts with suites, and scorecards of some hundred items."""
    roles = Role.REASONING, Role.LOCALITY, Role.RETENTION
    rate = Rate(value=0.8, low=0.76, high=0.84, items=ITEMS)
    verdict = Verdict(
        outcome=Outcome.PASS,
        rule="benchmark",
        reasons=(),
        suites=tuple(
            SuiteVerdict(
                suite=name,
                role=role,
                outcome=Outcome.PASS,
                reason="non-inferior",
                base=rate,
                live=rate,
                candidate=rate,
                items_used=ITEMS,
            )
            for name, role in zip(SUITES, roles, strict=True)
        ),
    )
    with ledger.db.write("benchmark"):
        for plan in range(max(1, plans - JUDGED), plans + 1):
            head = ledger.plans.head(plan)
            step = max(1, plan * 100 // ITEMS)
            scores = tuple(
                SuiteScore(
                    suite="earlier facts",
                    role=Role.RETENTION,
                    fingerprint="f",
                    results=tuple(
                        ItemResult(id=f"fact-{n * step:07}#0", correct=n % 9 > 0, output="Port")
                        for n in range(ITEMS)
                    ),
                )
                for _ in (0,)
            )
            name = head.served.name if head.served else ""
            card = Scorecard(model=name, sha256="0" * 64, suites=scores)
            ledger.db.do(
                "UPDATE verdicts SET body = ? WHERE plan = ?", (verdict.model_dump_json(), plan)
            )
            ledger.db.do(
                "INSERT OR REPLACE INTO scorecards VALUES (?, ?, ?, ?)",
                (plan, name, card.sha256, card.model_dump_json()),
            )
        ledger.db.do(
            "INSERT INTO quarantine (batch, line, kind, reason, text)"
            " SELECT seq, 101, 'missing', 'has no answer', '{}' FROM batches WHERE seq % 10 = 0"
        )
        ledger.db.do("UPDATE batches SET quarantined = 1 WHERE seq % 10 = 0")


def busy() -> None:
    """What a training child does to the machine: one core, for as long as it is let."""
    while True:
        sum(range(100_000))


def serve(settings: Settings) -> None:
    """The daemon, its log aside."""
    os.dup2(os.open(settings.state_dir / "log.txt", os.O_WRONLY | os.O_CREAT, 0o644), 2)
    start.run(settings)


def settings_for(root: Path) -> Settings:
    """A daemon that waits for an attached server which is not there: the page needs none."""
    (root / "model").mkdir(exist_ok=True)
    (root / "model" / "config.json").write_text("{}")
    return Settings.model_validate(
        {
            "state_dir": root,
            "model": {"path": root / "model"},
            "server": {"mode": "attach", "urls": [f"http://127.0.0.1:{free_port()}"]},
            "probe": {"skill": root / "model" / "config.json", "path": None},
            # What trains is the process beside it: no child of its own is to come on top of that.
            "train": {"replay": {"known": "", "reasoning": ""}, "retrain_at": 0},
            "gate": {"suites": ()},
            "daemon": {"check_at": ""},
            "keep": {"prune_at": ""},
            "web": {"port": free_port()},
        }
    ).rooted(root)


def p95(took: list[float]) -> float:
    """The 95th percentile in ms, to a tenth."""
    return round(1000 * statistics.quantiles(took, n=20)[-1], 1)


def measure(settings: Settings, plans: int, repeats: int) -> dict[str, Any]:
    """Each page `repeats` times, in turn, after one round that warms caches."""
    longest, done = [0.0], threading.Event()

    def tick() -> None:
        while not done.wait(0.05):
            began = time.perf_counter()
            ask(settings.layout.control_socket, "status")
            longest[0] = max(longest[0], time.perf_counter() - began)

    took: dict[str, list[float]] = {}
    with httpx.Client(base_url=f"http://127.0.0.1:{settings.web.port}", timeout=60) as client:
        ticking = threading.Thread(target=tick)
        for number in range(repeats + 1):
            for path in (*PAGES, "/metrics"):
                began = time.perf_counter()
                client.get(path.format(plan=plans)).raise_for_status()
                if number:
                    took.setdefault(path, []).append(time.perf_counter() - began)
            if not number:
                ticking.start()
        done.set()
        ticking.join()
    return {
        "page_p95_ms": {path: p95(took[path]) for path in PAGES},
        "page_median_ms": {path: round(1000 * statistics.median(took[path]), 1) for path in PAGES},
        "metrics_p95_ms": p95(took["/metrics"]),
        "tick_max_s": round(longest[0], 3),
    }


def first_scrape_ms(settings: Settings) -> float:
    """How long the first scrape after a start takes, in ms."""
    began = time.perf_counter()
    httpx.get(f"http://127.0.0.1:{settings.web.port}/metrics", timeout=60).raise_for_status()
    return round(1000 * (time.perf_counter() - began), 1)


def rest(pid: int) -> None:
    """Wait until a start is over: it verifies, which takes a core for as long as it lasts."""

    def processor_s() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    until = time.monotonic() + START_S
    while time.monotonic() < until:
        before = processor_s()
        time.sleep(2)
        if processor_s() - before < 0.4:
            return


def reachable(settings: Settings) -> bool:
    """Whether the daemon answers and its page does."""
    try:
        ask(settings.layout.control_socket, "status")
        httpx.get(f"http://127.0.0.1:{settings.web.port}/login")
    except (DaemonUnreachable, httpx.TransportError):
        return False
    return True


def main() -> None:
    """Build, serve, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--ledger", type=Path, help="a ledger built before is used again")
    parser.add_argument("--out", type=Path, default=DOCUMENTED)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="palorad-page-") as name:
        kept = (given.ledger or Path(name) / "built").resolve()
        if not (kept / "ledger.db").exists():
            build(kept, given.batches)
        root = Path(name) / "served"
        root.mkdir()
        shutil.copyfile(kept / "ledger.db", root / "ledger.db")
        archive(root, given.batches)
        found = served(settings_for(root), given.batches, given.repeats)
    report = {
        "setup": {"batches": given.batches, "facts": 100 * given.batches, "repeats": given.repeats},
        "niceness": os.nice(0),
        **found,
        "machine": machine_in_use() | {"load_at_end": [round(x, 1) for x in os.getloadavg()]},
        "versions": versions_in_use(),
    }
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    if given.out == DOCUMENTED:
        pages.fill(PAGE, {"page": table(report)})
    print(json.dumps(report, indent=1))


def table(figures: Mapping[str, Any]) -> str:
    """The figures as docs/page.md shows them."""
    pages_p95, medians = figures["page_p95_ms"], figures["page_median_ms"]
    slowest = max(pages_p95, key=pages_p95.__getitem__)
    rows = {
        "pages and their JSON, median": f"{statistics.median(medians.values()):.0f} ms",
        f"the slowest of them (`{slowest}`), 95th percentile": f"{pages_p95[slowest]:.0f} ms",
        "`/metrics`, 95th percentile": f"{figures['metrics_p95_ms']:.0f} ms",
        "`/metrics`, the first after a start": f"{figures['first_scrape_ms']:.0f} ms",
        "the daemon's loop, longest answer meanwhile": f"{figures['tick_max_s']:.2f} s",
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| what | measured |", "|---|---|", *lines])


def build(kept: Path, batches: int) -> None:
    """Put the ledger into a folder, whole or not at all."""
    with tempfile.TemporaryDirectory(prefix="palorad-page-") as name:
        with built(Path(name), batches) as ledger:
            while ledger.text.index(20_000):
                pass
            judge(ledger, batches)
        kept.mkdir(parents=True, exist_ok=True)
        shutil.move(Path(name) / "ledger.db", kept / "ledger.db")


def archive(root: Path, batches: int) -> None:
    """The file of each batch, as intake keeps it."""
    folder = Layout(root).archive
    folder.mkdir()
    for number in range(batches):
        (folder / f"batch-{number:06}.jsonl").write_text("{}\n")


def served(settings: Settings, plans: int, repeats: int) -> dict[str, Any]:
    """What is measured of a daemon over this state, which ends afterwards."""
    children = [
        multiprocessing.Process(target=serve, args=(settings,)),
        multiprocessing.Process(target=busy),
    ]
    try:
        for child in children:
            child.start()
        until = time.monotonic() + 60
        while not reachable(settings) and time.monotonic() < until:
            time.sleep(0.2)
        first_ms = first_scrape_ms(settings)
        rest(children[0].pid or 0)
        return {**measure(settings, plans, repeats), "first_scrape_ms": first_ms}
    finally:
        for child in children:
            child.terminate()
            child.join()


if __name__ == "__main__":
    main()
