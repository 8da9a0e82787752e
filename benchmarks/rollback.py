"""How long a rollback takes through the daemon: writes benchmarks/results/rollback.json.

    python -m benchmarks.rollback [--repeats 40]

A daemon with its default settings serves two revisions. A command on its control socket rolls
back, another goes forward again, at any phase of the daemon's ticks; a client asks the alias one
short question after the other. Milliseconds from the command to: its acknowledgement, the flip of
the alias file, and the end of the first answer from the former revision (`rollback_ms`). Once with
the embedded server, once with a stand-in that answers at once, which leaves what palorad itself
takes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from daemon.base.control import ask
from daemon.config.settings import Settings
from policies.errors import DaemonUnreachable
from tests.support import live
from tests.support.live import Live

OUT: Final = Path(__file__).parent / "results" / "rollback.json"
PATIENCE_S: Final = 300.0
DAEMON: Final = """
import sys
from daemon.config.settings import Settings
from daemon.loop.start import run
run(Settings.model_validate_json(sys.argv[1]))
"""
STAND_IN: Final = """
import sys
from pathlib import Path
import uvicorn
from daemon.serving.alias import AdminGateway
from tests.support.fake_vllm import Replica
pointer, key, served = map(Path, sys.argv[2:])
replica = Replica(AdminGateway(pointer, key, served))
uvicorn.run(replica.middleware, port=int(sys.argv[1]), log_level="error", lifespan="off")
"""


class StandIn(Live):
    """A server that answers from stored identities at once, behind the real middleware."""

    def start(self, wait: bool = True) -> Live:
        """Start the process and wait until it is healthy."""
        layout = self.settings.layout
        where = [str(layout.alias), str(layout.admin_key), str(layout.served)]
        port = self.url.rpartition(":")[2]
        self.process = subprocess.Popen(
            [sys.executable, "-c", STAND_IN, port, *where], start_new_session=True
        )
        self.log.parent.mkdir(exist_ok=True)
        self.log.touch()
        if wait:
            self.wait()
        return self


class AliasClient:
    """Asks the alias all the time; `answers` are (ended, revision), the latest last."""

    def __init__(self, url: str, alias: str) -> None:
        self._url, self._alias = url, alias
        self.answers: list[tuple[float, int]] = []
        self.stop = threading.Event()

    def run(self) -> None:
        """Ask until told to stop."""
        body = {"model": self._alias, "prompt": "prompt 0", "max_tokens": 1}
        with httpx.Client(base_url=self._url, trust_env=False, timeout=30) as http:
            while not self.stop.is_set():
                response = http.post("/v1/completions", json=body)
                response.raise_for_status()
                revision = int(response.headers["x-palorad-revision"])
                self.answers.append((time.monotonic(), revision))

    def first(self, revision: int, since: float) -> float | None:
        """When the first answer from `revision` ended after `since`; monotonic seconds."""
        ended = (at for at, found in list(self.answers) if at > since and found == revision)
        return next(ended, None)


@contextmanager
def asking(client: AliasClient) -> Iterator[None]:
    """A thread that asks as long as the block lasts."""
    thread = threading.Thread(target=client.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        client.stop.set()
        thread.join(PATIENCE_S)


def settings_of(site: Live) -> Settings:
    """The daemon's settings: as they are by default, but that nothing is learnt from files."""
    config = site.model_dir / "config.json"
    return Settings.model_validate(
        {
            "state_dir": site.settings.state_dir,
            "model": {"path": site.model_dir, "alias": "live"},
            "server": {"mode": "attach", "urls": [site.url], "max_lora_rank": 16},
            "probe": {"skill": config, "path": None, "serve": "base"},
            "train": {"rank": 8, "rank_budget": 16, "replay": {"known": "", "reasoning": ""}},
            "gate": {"suites": ()},
            "intake": {"inbox": site.settings.state_dir / "inbox"},
        }
    )


@contextmanager
def daemon(settings: Settings, steps: str) -> Iterator[None]:
    """The daemon as a process of its own."""
    log = settings.state_dir / "daemon.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", DAEMON, settings.model_dump_json()],
            stdout=out,
            stderr=out,
            env={**os.environ, "PALORAD_STEPS": steps},
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def until(true: Callable[[], bool], what: str) -> None:
    """Wait; raises `AssertionError` after `PATIENCE_S`."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"{what} took too long")
        time.sleep(0.005)


def settled(settings: Settings, revision: int) -> bool:
    """Whether every replica serves `revision` and the daemon knows it."""
    try:
        status = ask(settings.layout.control_socket, "status")
    except DaemonUnreachable:
        return False
    routed = json.loads(settings.layout.alias.read_text())["revision"]
    return routed == revision and all(replica["ready"] for replica in status["replicas"])


def learn(settings: Settings, count: int) -> None:
    """One batch after the other, until revision `count` is live."""
    until(settings.layout.control_socket.exists, "starting the daemon")
    for number in range(1, count + 1):
        drop = settings.layout.inbox / f"{number}.jsonl"
        beside = settings.state_dir / drop.name
        beside.write_text(f'{{"prompt": "question {number}?", "answer": "{number}"}}\n')
        beside.rename(drop)
        until(lambda n=number: settled(settings, n), f"revision {number}")  # type: ignore[misc]


def once(settings: Settings, client: AliasClient, command: str, revision: int) -> dict[str, float]:
    """One command: milliseconds to each hop."""
    begun, began_ns = time.monotonic(), time.time_ns()
    ask(settings.layout.control_socket, command, to=revision)
    acknowledged = time.monotonic()
    until(lambda: client.first(revision, begun) is not None, f"an answer from {revision}")
    answered = client.first(revision, begun)
    flipped_ns = settings.layout.alias.stat().st_mtime_ns
    until(lambda: settled(settings, revision), "settling")
    return {
        "acknowledged_ms": 1000 * (acknowledged - begun),
        "flipped_ms": (flipped_ns - began_ns) / 1e6,
        "answered_ms": 1000 * ((answered or 0.0) - begun),
    }


def measure(site: Live, steps: str, repeats: int) -> dict[str, Any]:
    """All rollbacks of one kind of server, each at a random phase of the daemon's ticks."""
    rng, settings = random.Random(0), settings_of(site)
    hops: dict[str, list[dict[str, float]]] = {"rollback": [], "forward": []}
    site.start()
    try:
        with daemon(settings, steps):
            learn(settings, 2)
            client = AliasClient(site.url, settings.model.alias)
            with asking(client):
                for _ in range(repeats):
                    for command, revision in (("rollback", 1), ("forward", 2)):
                        time.sleep(rng.uniform(0.0, 2 * settings.daemon.tick_s))
                        hops[command].append(once(settings, client, command, revision))
    finally:
        site.stop()
    alone = [b[0] - a[0] for a, b in zip(client.answers, client.answers[1:], strict=False)]
    return {
        "rollback_ms": summary([row["answered_ms"] for row in hops["rollback"]]),
        "hops": {
            hop: summary([row[hop] for row in hops["rollback"]])
            for hop in ("acknowledged_ms", "flipped_ms")
        },
        "forward_ms": summary([row["answered_ms"] for row in hops["forward"]]),
        "request_alone_ms": summary([1000 * seconds for seconds in alone]),
        "tick_s": settings.daemon.tick_s,
    }


def summary(values: Sequence[float]) -> dict[str, float]:
    """The median, the 95th percentile and the largest, rounded to a tenth."""
    ordered = sorted(values)
    at = [int(share * len(ordered)) for share in (0.5, 0.95)]
    p50, p95 = (ordered[min(len(ordered) - 1, index)] for index in at)
    return {"p50": round(p50, 1), "p95": round(p95, 1), "max": round(ordered[-1], 1)}


def main() -> None:
    """Measure both kinds and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--report", type=Path, default=OUT)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = live.model(root / "model")
        stand_in = StandIn("embedded", root / "stand-in", model)
        embedded = Live("embedded", root / "embedded", model)
        report = {
            "repeats": chosen.repeats,
            "embedded": measure(embedded, "benchmarks.rollback_steps", chosen.repeats),
            "stand_in": measure(stand_in, "tests.support.fake_steps", chosen.repeats),
            "machine": {
                "cpu": platform.processor() or platform.machine(),
                "cores": len(os.sched_getaffinity(0)),
                "python": platform.python_version(),
            },
        }
    chosen.report.parent.mkdir(parents=True, exist_ok=True)
    chosen.report.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
