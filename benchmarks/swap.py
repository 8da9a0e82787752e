"""Hot swap under load against the real vLLM: writes benchmarks/results/swap.json.

    python -m benchmarks.swap [--promotions 50] [--rollbacks 10] [--clients 16] [--kind vllm]

Clients, half of them streaming, ask the alias greedily all the time while revisions are promoted
and rolled back through the fleet. Every answer is compared afterwards with what the revision that
its header names answers when it is asked alone: an answer is `mixed` when they differ,
`wrong_version_after_flip` when it was begun after a flip was done and names another revision.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import torch

from adapters.generate import Generator
from benchmarks import swap_page
from daemon.serving import replicas, server_command
from daemon.serving.client import HttpServer
from daemon.serving.connections import LIMITS
from daemon.serving.fleet import Fleet
from policies.records import Revision
from tests.support import live
from tests.support.live import Live

OUT = Path(__file__).parent / "results" / "swap.json"
ASKED = tuple(f"{word} number {i} is" for i in range(8) for word in ("Answer", "The capital"))
LENGTHS = (4, 12, 24)


@dataclass(slots=True)
class ClientAnswer:
    """One answer of a client: what was asked, what came, when (monotonic seconds)."""

    prompt: str
    size: int
    streamed: bool
    begun: float
    ended: float = 0.0
    status: int = 0
    revision: str = ""
    text: str = ""
    problem: str = ""


@dataclass(slots=True)
class Swap:
    """One flip: decision, first token under the alias from the new revision."""

    number: int
    kind: str
    decided: float
    done: float = 0.0
    first_token: float = 0.0


@dataclass(slots=True)
class SwapRun:
    """Everything that was active."""

    answers: list[ClientAnswer] = field(default_factory=list)
    swaps: list[Swap] = field(default_factory=list)
    stop: bool = False


async def client(run: SwapRun, url: str, index: int) -> None:
    """Ask the alias one question after the other until the run ends."""
    rng = random.Random(index)
    streamed = index % 2 == 0
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False, limits=LIMITS) as http:
        while not run.stop:
            answer = ClientAnswer(
                rng.choice(ASKED), rng.choice(LENGTHS), streamed, time.monotonic()
            )
            try:
                await _ask(http, answer)
            except (httpx.HTTPError, ValueError, KeyError) as error:
                answer.problem = repr(error)
            answer.ended = time.monotonic()
            run.answers.append(answer)


async def _ask(http: httpx.AsyncClient, answer: ClientAnswer) -> None:
    body = {
        "model": "live",
        "prompt": answer.prompt,
        "max_tokens": answer.size,
        "temperature": 0,
        "ignore_eos": True,
    }
    if not answer.streamed:
        response = await http.post("/v1/completions", json=body)
        _note(answer, response)
        if answer.status == 200:
            value = response.json()
            answer.text = value["choices"][0]["text"]
            _check_name(answer, value)
        return
    async with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        _note(answer, response)
        finished = False
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                finished = True
            elif line.startswith("data: "):
                value = json.loads(line[6:])
                answer.text += value["choices"][0]["text"]
                _check_name(answer, value)
        if not finished:
            answer.problem = "the stream ended early"


def _note(answer: ClientAnswer, response: httpx.Response) -> None:
    answer.status = response.status_code
    answer.revision = response.headers.get("x-palorad-revision", "")


def _check_name(answer: ClientAnswer, value: dict[str, Any]) -> None:
    if value["model"] != "live":
        answer.problem = f"answered as {value['model']}"


async def promote(
    run: SwapRun, fleet: Fleet, server: HttpServer, target: Revision, former: Revision, kind: str
) -> None:
    """One decision: ensure it, then take the time until the alias gives the first new token."""
    swap = Swap(target.number, kind, time.monotonic())
    while True:
        ensured = await fleet.ensure(target, former)
        if ensured.done:
            break
        await asyncio.sleep(0.05)
    swap.done = time.monotonic()
    (first,) = await server.complete("live", [ASKED[0]], max_tokens=1)
    if first.headers["x-palorad-revision"] != str(target.number):
        raise AssertionError(f"the alias answers from {first.headers['x-palorad-revision']}")
    swap.first_token = time.monotonic()
    run.swaps.append(swap)


async def story(site: Live, made: Sequence[Revision], rollbacks: int, clients: int) -> SwapRun:
    """All promotions, with a rollback (and forward again) spread evenly among them."""
    run = SwapRun()
    servers = replicas.connect(site.settings)
    fleet = replicas.fleet(site.settings, servers)
    await fleet.ensure(live.BASE)
    tasks = [asyncio.create_task(client(run, site.url, i)) for i in range(clients)]
    current = live.BASE
    every = max(1, len(made) // max(1, rollbacks))
    for i, revision in enumerate(made, 1):
        await promote(run, fleet, servers[0], revision, current, "promotion")
        current, former = revision, current
        await asyncio.sleep(0.3)
        if i % every == 0 and i // every <= rollbacks:
            await promote(run, fleet, servers[0], former, current, "rollback")
            await asyncio.sleep(0.3)
            await promote(run, fleet, servers[0], current, former, "forward")
    run.stop = True
    await asyncio.gather(*tasks)
    for server in servers:
        await server.aclose()
    return run


async def serve(site: Live, revision: Revision) -> None:
    """Have the alias answer from a revision: a server that has started routes nowhere before."""
    servers = replicas.connect(site.settings)
    fleet = replicas.fleet(site.settings, servers)
    while not (await fleet.ensure(revision)).done:  # noqa: ASYNC110 - another process's doing
        await asyncio.sleep(0.05)
    for server in servers:
        await server.aclose()


async def references(
    site: Live, run: SwapRun, made: Sequence[Revision]
) -> dict[tuple[Any, ...], str]:
    """What each revision answers when it is asked alone, by (revision, prompt, size)."""
    servers = replicas.connect(site.settings)
    names = {"0": "base"} | {str(r.number): r.served_name for r in made}
    wanted: dict[tuple[str, int], set[str]] = {}
    for answer in run.answers:
        wanted.setdefault((answer.revision, answer.size), set()).add(answer.prompt)
    known: dict[tuple[Any, ...], str] = {}
    for (revision, size), prompts in sorted(wanted.items()):
        if revision not in names:
            continue
        name = names[revision]
        if name != "base":
            await servers[0].load(name, str(site.served / name))
        ordered = sorted(prompts)
        got = await servers[0].complete(
            name, ordered, max_tokens=size, salt=f"alone-{revision}", ignore_eos=True
        )
        for prompt, alone in zip(ordered, got, strict=True):
            known[revision, prompt, size] = alone.text
    for server in servers:
        await server.aclose()
    return known


def judge(run: SwapRun, known: dict[tuple[Any, ...], str]) -> dict[str, Any]:
    """Counts of what must not happen, with up to five examples of each."""
    failed = [a for a in run.answers if a.status != 200 or a.problem]
    good = [a for a in run.answers if a.status == 200 and not a.problem]
    mixed = [a for a in good if known.get((a.revision, a.prompt, a.size)) != a.text]
    late = []
    for swap, following in zip(run.swaps, [*run.swaps[1:], None], strict=True):
        until = following.decided if following else float("inf")
        late += [a for a in good if swap.done <= a.begun < until and a.revision != str(swap.number)]
    return {
        "requests": len(run.answers),
        "streamed": sum(a.streamed for a in run.answers),
        "failed": len(failed),
        "mixed": len(mixed),
        "wrong_version_after_flip": len(late),
        "examples": [
            {"status": a.status, "problem": a.problem, "revision": a.revision, "text": a.text[:80]}
            for a in (failed[:5] + mixed[:5] + late[:5])
        ],
    }


def _resident_mb(site: Live) -> float:
    total = 0.0
    for folder, _ in _processes(site):
        with suppress(OSError, IndexError, ValueError):
            line = (folder / "smaps_rollup").read_text()
            total += int(line.split("Pss:")[1].split()[0]) / 1024
    return round(total, 1)


def _processes(site: Live) -> Iterator[tuple[Path, list[str]]]:
    """Folders in /proc of a server's process group, and their stat fields from the state on."""
    group = str(site.process.pid if site.process is not None else -1)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[2] == group:
                yield stat.parent, fields


class Clocked(Live):
    """A server that notes how long each request was in palorad's middleware alone."""

    def arguments(self, command: server_command.Command) -> Sequence[str]:
        """The command line with a clock inside and one around the middleware."""
        given = list(command.arguments)
        at = given.index("--middleware")
        inside, around = ("--middleware", "clock.Inner"), ("--middleware", "clock.Outer")
        return [*given[:at], *inside, *given[at : at + 2], *around, *given[at + 2 :]]


def measure_throughput(root: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """What the middleware takes of a request's time, under the load of all clients.

    With so many clients that each waits for its answer before it asks again, throughput is their
    number over a request's time, so the ratio of times is that of throughputs.
    """
    times = root / "times"
    site = Clocked(chosen.kind, root / "state", live.model(root / "model"))
    generator = Generator(site.model_dir, max_rank=16, device=torch.device("cpu"))
    made = live.publish(generator, site.served, 1)
    path = os.pathsep.join(filter(None, [str(OUT.parent.parent), os.environ.get("PYTHONPATH")]))
    with patch.dict(os.environ, {"PYTHONPATH": path, "CLOCK_FILE": str(times)}):
        site.start()
    try:
        asyncio.run(serve(site, made))
        asyncio.run(load(site, chosen.clients, chosen.seconds / 4))
        warm = len(times.read_text().splitlines())
        run = asyncio.run(load(site, chosen.clients, chosen.seconds))
    finally:
        site.stop()
    wrong = [a for a in run.answers if a.problem or a.revision != str(made.number)]
    if wrong:
        raise AssertionError(f"{len(wrong)} requests failed: {wrong[0]}")
    rows = [tuple(map(float, line.split())) for line in times.read_text().splitlines()[warm:]]
    return ratios([(whole, alone) for whole, alone in rows])


def ratios(rows: Sequence[tuple[float, float]], draws: int = 1000) -> dict[str, Any]:
    """Without over with the middleware, from (whole, alone) seconds of each request.

    The interval of 95 % is over requests (bootstrap, seed 0).
    """

    def ratio(chosen: Sequence[tuple[float, float]]) -> float:
        whole = sum(w for w, _ in chosen)
        return (whole - sum(a for _, a in chosen)) / whole

    rng = random.Random(0)
    drawn = sorted(ratio(rng.choices(rows, k=len(rows))) for _ in range(draws))
    alone = sorted(a for _, a in rows)
    return {
        "throughput_ratio": round(ratio(rows), 4),
        "throughput_ratio_interval": [
            round(drawn[int(draws * share)], 4) for share in (0.025, 0.975)
        ],
        "throughput_requests": len(rows),
        "request_p50_ms": round(statistics.median(w for w, _ in rows) * 1000, 2),
        "middleware_p50_ms": round(statistics.median(alone) * 1000, 3),
        "middleware_p99_ms": round(_at(alone, 0.99) * 1000, 3),
    }


async def load(site: Live, clients: int, seconds: float) -> SwapRun:
    """All clients, half of them streaming, for a while."""
    run = SwapRun()
    asking = [asyncio.create_task(client(run, site.url, n)) for n in range(clients)]
    await asyncio.sleep(seconds)
    run.stop = True
    await asyncio.gather(*asking)
    return run


def _machine(site: Live) -> dict[str, Any]:
    version = "embedded"
    if site.kind == "vllm":
        said = subprocess.run(
            [str(live.VLLM), "--version"], capture_output=True, text=True, check=True
        )
        version = said.stdout.strip().splitlines()[-1]
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "vllm": version,
        "torch": torch.__version__,
    }


def main() -> None:
    """Run it all and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--promotions", type=int, default=50)
    parser.add_argument("--rollbacks", type=int, default=10)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load for the throughput")
    parser.add_argument("--kind", choices=["vllm", "embedded"], default="vllm")
    parser.add_argument(
        "--only-throughput", action="store_true", help="measure that again, keep the rest"
    )
    parser.add_argument("--report", type=Path, default=OUT)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if chosen.only_throughput:
            kept = json.loads(chosen.report.read_text())
            kept = {k: v for k, v in kept.items() if not k.startswith("throughput")}
            report = {**kept, **measure_throughput(Path(folder), chosen)}
        else:
            report = measure(Path(folder), chosen)
    chosen.report.parent.mkdir(parents=True, exist_ok=True)
    chosen.report.write_text(json.dumps(report, indent=2) + "\n")
    if chosen.report == OUT:
        swap_page.fill(report)
    print(json.dumps(report, indent=2))


def measure(root: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement in one temporary directory."""
    model = live.model(root / "model")
    site = Live(chosen.kind, root / "state", model)
    generator = Generator(model, max_rank=16, device=torch.device("cpu"))
    made = [live.publish(generator, site.served, i + 1) for i in range(chosen.promotions)]
    begun = time.monotonic()
    site.start()
    start_s = time.monotonic() - begun
    try:
        before = _resident_mb(site)
        run = asyncio.run(story(site, made, chosen.rollbacks, chosen.clients))
        after = _resident_mb(site)
        result = judge(run, asyncio.run(references(site, run, made)))
        begun = time.monotonic()
        site.stop()
        site.start()
        restart_s = time.monotonic() - begun
    finally:
        site.stop()
    ratio = measure_throughput(root / "clocked", chosen) if chosen.kind == "vllm" else {}
    new = sorted(s.first_token - s.decided for s in run.swaps if s.kind == "promotion")
    back = sorted(s.first_token - s.decided for s in run.swaps if s.kind == "rollback")
    seconds = {
        "swap_p50_s": _at(new, 0.50),
        "swap_p99_s": _at(new, 0.99),
        "rollback_p50_s": _at(back, 0.50),
        "rollback_p99_s": _at(back, 0.99),
        "start_s": round(start_s, 2),
        "restart_s": round(restart_s, 2),
    }
    counts = {
        "promotions": len(new),
        "rollbacks": len(back),
        "forward_again": len(run.swaps) - len(new) - len(back),
        "clients": chosen.clients,
    }
    memory = {"memory_before_mb": before, "memory_after_mb": after}
    return {**counts, **result, **seconds, **ratio, **memory, "machine": _machine(site)}


def _at(ordered: Sequence[float], share: float) -> float:
    if not ordered:
        return float("nan")
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4)


if __name__ == "__main__":
    main()
