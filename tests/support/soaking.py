"""One daemon and its embedded server for a long time: batches, samples, the promises at last."""

from __future__ import annotations

import asyncio
import ctypes
import ctypes.util
import json
import os
import socket
import time
from collections import Counter, deque
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx

from adapters import store
from daemon.base.control import ask
from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.loop.instance import single_instance
from daemon.loop.logs import configure_log
from daemon.loop.preflight import prepare_state
from daemon.loop.service import Service
from daemon.serving.servers import Servers
from daemon.verification.verify import verify
from policies.gate.records import Outcome
from policies.records import PlanState
from tests.support import clocks, quick_adapters
from tests.support.crashing import ForkedJobs, Site
from tests.support.standstill import Standstill

ROLLBACK_EVERY = 25
RETRACTION_EVERY = 50
BAD_EVERY = 10
PRUNE_EVERY = 24
PASSES = timedelta(hours=1)  # by the wall clock, from one batch to the next
KEEP = {"revisions": 10, "rejected_days": 3, "answers_days": 3, "work_days": 3, "receipts_days": 3}
REPLAYED = 200
TICKS_KEPT = 2000
SQLITE = ctypes.util.find_library("sqlite3")


class Timed(Service):
    """A service that writes down how long its latest ticks took, and how long they computed.

    Ticks that begin or erase something wait for disks and servers; most find nothing to do.
    """

    ticks: deque[tuple[float, float]] | None = None
    standstill: Standstill | None = None
    written_at = 0.0

    async def tick(self) -> None:
        self.standstill = self.standstill or Standstill()
        began, computed = time.perf_counter(), time.thread_time()
        await super().tick()
        ended = time.perf_counter()
        if self.ticks is None:
            self.ticks = deque(maxlen=TICKS_KEPT)
        self.ticks.append((1000 * (ended - began), 1000 * (time.thread_time() - computed)))
        if ended - self.written_at > 1.0:
            self.written_at = ended
            beside = self._settings.state_dir.parent / "ticks.tmp"
            told = {
                "ticks": list(self.ticks),
                "sqlite_mb": _sqlite_mb("sqlite3_memory_used"),
                "sqlite_mb_max": _sqlite_mb("sqlite3_memory_highwater", 0),
                "standstill_ms_max": round(self.standstill.longest_ms, 1),
                "standstill_cpu_ms_max": round(self.standstill.longest_cpu_ms, 1),
            }
            beside.write_text(json.dumps(told))
            beside.rename(beside.with_suffix(".json"))


class LongSite(Site):
    """A site whose daemon manages the real embedded server."""

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        model = quick_adapters.prepare(self.root)
        self.url = f"http://127.0.0.1:{_free_port()}"
        self.settings = long_settings(self.root, model, self.url)
        self.layout = self.settings.layout
        self.daemon = None
        self.patience_s = 300.0
        self.clock = self.root / "clock"
        self.environment[clocks.VARIABLE] = str(self.clock)

    def _daemon(self) -> int:
        os.environ["PALORAD_STEPS"] = "tests.support.quick_adapters"
        clocks.obey()
        settings = self.settings
        prepare_state(settings)
        configure_log("info")
        with single_instance(self.layout.lock), Ledger.open(self.layout.ledger) as ledger:

            async def run() -> None:
                service = Timed(settings, ledger, Servers(settings), jobs=ForkedJobs())
                await service.run()

            asyncio.run(run())
        return 0

    def close(self) -> None:
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.terminate()
            self.daemon.wait()


def long_settings(root: Path, model: Path, url: str) -> Settings:
    """As by default, but that nothing rests, little is kept loaded, and what is kept is kept for
    days, not for weeks."""
    tree: dict[str, Any] = {
        "state_dir": root / "s",
        "model": {"path": model},
        "server": {"kind": "embedded", "mode": "managed", "urls": [url], "drain_s": 0.0}
        | {"max_lora_rank": 16},
        "probe": {"skill": model / "config.json", "path": None},
        "train": {
            "rank": 4,
            "rank_budget": 16,
            "backoff_s": 0.0,
            "max_replay": REPLAYED,
            "replay": {"known": "", "reasoning": ""},
        },
        "keep": KEEP,
        "gate": {"suites": ()},
        "intake": {"stable_s": 0.0, "rescan_s": 0.2, "watch": "off"},
        "daemon": {"tick_s": 0.02},
    }
    return Settings.model_validate(tree).rooted(root)


class Soak:
    """Drops one batch after the other, and now and then does what people do."""

    def __init__(self, root: Path) -> None:
        self.site = LongSite(root)
        self.lines: Counter[str] = Counter()
        self.bad = 0
        self.retracted: list[str] = []
        self.site.start()

    def close(self) -> None:
        self.site.close()

    # --- what happens --------------------------------------------------------------------------

    def batch(self, number: int) -> None:
        """An hour passes in which one file is learnt and served; now and then there is a rollback
        there and back, or a retraction, and each day what need not be kept is removed."""
        clocks.put(self.site.clock, number * PASSES)
        prompts = [f"question {number} of {part}?" for part in range(2)]
        self.site.drop(f"b{number}.jsonl", prompts)
        self.lines.update(prompts)
        if number % BAD_EVERY == 0:
            self._bad(number)
        if number % ROLLBACK_EVERY == 0:
            self._back_and_forth()
        if number % RETRACTION_EVERY == 0:
            self._retract(f"question {number - 7} of 0?")
        if number % PRUNE_EVERY == 0:
            ask(self.site.layout.control_socket, "prune")

    def _bad(self, number: int) -> None:
        name = f"bad{number}.jsonl"
        beside = self.site.root / name
        beside.write_text(f'{{"prompt": {number}}}\n')
        beside.rename(self.site.layout.inbox / name)
        self.bad += 1
        self.site.until(lambda: not (self.site.layout.inbox / name).exists(), f"taking {name}")

    def _back_and_forth(self) -> None:
        with self.site.reading() as ledger:
            target = ledger.revisions.target()
        if target.parent:
            self.site.point("rollback", target.parent)
            self.site.point("forward", target.number)

    def _retract(self, prompt: str) -> None:
        ask(self.site.layout.control_socket, "retract", fact=prompt, because="a soak")
        self.retracted.append(prompt)
        self.site.until(self._all_certified, f"forgetting {prompt}")

    def _all_certified(self) -> bool:
        with self.site.reading() as ledger:
            return (
                not ledger.retractions.all(unfinished=True)
                and ledger.plans.open_plan() is None
                and self.site._serves(ledger.revisions.target().number)
            )

    # --- what it takes -------------------------------------------------------------------------

    def sample(self) -> dict[str, Any]:
        """Memory in MiB, descriptors, milliseconds, and what lies on the disk."""
        daemon = self.site.alive().pid
        server = self._server()
        told = json.loads((self.site.root / "ticks.json").read_text())
        times, computed = (sorted(of_one) for of_one in zip(*told["ticks"], strict=True))
        root = self.site.layout.root
        sizes = {folder.name: _size(folder) for folder in root.iterdir() if folder.is_dir()}
        return {
            "daemon_rss_mb": (rss := _rss_mb(daemon)),
            "sqlite_mb": told["sqlite_mb"],
            "own_mb": round(rss - (told["sqlite_mb_max"] or 0), 1),
            "daemon_fds": _fds(daemon),
            "server_rss_mb": _rss_mb(server),
            "server_fds": _fds(server),
            "ledger_mb": round(self.site.layout.ledger.stat().st_size / 2**20, 2),
            "disk_mb": round(sum(sizes.values()) / 2**20, 1),
            "entries": {name: len(list((root / name).iterdir())) for name in sorted(sizes)},
            "tick_ms_p50": round(times[len(times) // 2], 2),
            "tick_ms_p99": round(times[len(times) * 99 // 100], 2),
            "tick_ms_max": round(times[-1], 2),
            "tick_cpu_ms_p50": round(computed[len(computed) // 2], 2),
            "tick_cpu_ms_p99": round(computed[len(computed) * 99 // 100], 2),
            "standstill_ms_max": told["standstill_ms_max"],
            "standstill_cpu_ms_max": told["standstill_cpu_ms_max"],
        }

    def _server(self) -> int:
        """The embedded server: of the daemon's descendants the one that holds most memory."""
        found = _descendants(self.site.alive().pid)
        return max(found, key=_rss_mb)

    # --- what was promised ---------------------------------------------------------------------

    def promises(self) -> bool:
        """Whether all five hold; raises `AssertionError` with the first that does not."""
        site = self.site
        self._answers()
        assert site.stop() == 0
        with site.reading() as ledger:
            self._lines(ledger)
            target = self._publications(ledger)
            ledger.events.verify_chain()
            assert ledger.plans.open_plan() is None
            assert not ledger.retractions.all(unfinished=True)
        assert json.loads(site.layout.alias.read_text())["revision"] == target
        report = verify(site.settings, servers=lambda _settings: ())
        assert not report.lines, report.lines
        gone = [f'"{prompt}"'.encode() for prompt in self.retracted]
        for path in site.layout.root.rglob("*"):
            content = path.read_bytes() if path.is_file() else b""
            assert not [prompt for prompt in gone if prompt in content], path
        return True

    def _answers(self) -> None:
        alias = self.site.settings.model.alias
        body = {"model": alias, "prompt": "x", "max_tokens": 1}
        answer = httpx.post(f"{self.site.url}/v1/completions", json=body, timeout=30)
        with self.site.reading() as ledger:
            target = ledger.revisions.target().number
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-palorad-revision"] == str(target)

    def _lines(self, ledger: Ledger) -> None:
        rows = ledger.db.rows("SELECT body FROM facts WHERE op <> 'retract'")
        kept = Counter(json.loads(body).get("prompt") for (body,) in rows)
        gone = Counter(self.retracted)
        for prompt in self.lines - gone:
            assert kept[prompt] == 1, (prompt, kept[prompt])
        for prompt in gone:
            assert kept[prompt] == 0, prompt
        assert len(rows) == self.lines.total()
        assert ledger.db.one("SELECT count(*) FROM quarantine") == self.bad

    def _publications(self, ledger: Ledger) -> int:
        revisions = [revision for revision in ledger.revisions.all() if revision.number]
        plans = [revision.plan_id for revision in revisions]
        assert len(set(plans)) == len(plans)
        for revision in revisions:
            assert revision.plan_id is not None
            verdict = ledger.steps.verdict(revision.plan_id)
            assert verdict is not None and verdict.outcome is Outcome.PASS
            head = ledger.plans.head(revision.plan_id)
            assert head.state in (PlanState.LIVE, PlanState.ROLLED_BACK)
            assert head.served is not None and head.served.sha256 == revision.sha256
        target = ledger.revisions.target()
        directory = self.site.layout.served / target.served_name
        assert store.verify(directory) == ()
        assert store.content_hash(directory) == target.sha256
        return target.number


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _size(folder: Path) -> int:
    """Bytes of the files below a folder; what is removed meanwhile counts for nothing."""
    found = 0
    for home, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                found += Path(home, name).stat().st_size
    return found


def _rss_mb(pid: int) -> float:
    fields = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in fields if line.startswith("RssAnon:")] or ["RssAnon: 0 kB"]
    return round(int(line.split()[1]) / 1024, 1)


def _sqlite_mb(name: str, *arguments: int) -> float | None:
    """What SQLite has taken in this process, or at most had: its page cache grows with the ledger,
    to 64 MiB. What it gives back stays in the heap, for whoever comes next."""
    if SQLITE is None:
        return None
    used = getattr(ctypes.CDLL(SQLITE), name)
    used.restype = ctypes.c_int64
    return round(int(used(*arguments)) / 2**20, 1)


def _fds(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    found = []
    for child in map(int, children):
        found += [child, *_descendants(child)]
    return found
