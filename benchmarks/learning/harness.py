"""One run: a method learns a stream of batches on a base and is measured on the method."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Final

import torch

from adapters import lora
from adapters.compose import compose
from adapters.generate import Generator
from adapters.plans import TrainPlan, TrainReport
from adapters.trainer import train_adapter
from benchmarks.learning.bases import Base
from benchmarks.learning.batches import FactBatch, Purpose, batch, contradicting
from benchmarks.learning.judge import Judge, accuracies
from benchmarks.learning.methods import METHODS, Method
from benchmarks.learning.runs import PROTOCOLS, RANK_BUDGET, LearningRun, Protocol, from_scratch
from benchmarks.provenance import commit
from policies.facts.updates import Updates
from policies.lineage import learning_rank, over_budget
from policies.records import PlanKind

RANK: Final = 16
STACK_BUDGET: Final = 64
AT_ONCE: Final = 1024
REACHED: Final = "reached.json"


@dataclass(frozen=True)
class Piece:
    """One adapter of a lineage: the batches that it learnt, by place, and its rank."""

    path: Path
    batches: tuple[int, ...]
    rank: int


@dataclass(frozen=True)
class Reached:
    """How far a stream has come: its adapters, what was measured of it, the seconds it took, and
    each machine in turn with the last batch that was learnt on it."""

    batches: int = 0
    adapters: tuple[Piece, ...] = ()
    measured: tuple[dict[str, Any], ...] = ()
    seconds: float = 0.0
    machines: tuple[tuple[str, int], ...] = ()

    @property
    def machine(self) -> str:
        """On what it ran, in words."""
        *earlier, (last, _) = self.machines or ((_here(), 0),)
        return ", then ".join([*(f"{name} to batch {end}" for name, end in earlier), last])

    def on(self, machine: str) -> tuple[tuple[str, int], ...]:
        """The machines when one more batch has been learnt on `machine`."""
        same = bool(self.machines) and self.machines[-1][0] == machine
        return (*(self.machines[:-1] if same else self.machines), (machine, self.batches + 1))

    @classmethod
    def read(cls, folder: Path) -> Reached:
        """Where an earlier run of the stream was cut off; the beginning where there was none."""
        try:
            found = json.loads((folder / REACHED).read_text("utf-8"))
        except FileNotFoundError:
            return cls()
        pieces = (
            Piece(folder / name, tuple(batches), rank) for name, batches, rank in found["adapters"]
        )
        measured, machines = tuple(found["measured"]), found.get("machines", ())
        ran = tuple((name, batch) for name, batch in machines)
        return cls(found["batches"], tuple(pieces), measured, found["seconds"], ran)

    def write(self, folder: Path) -> None:
        """Note it, whole or not at all."""
        pieces = [(piece.path.name, piece.batches, piece.rank) for piece in self.adapters]
        temporary = folder / f".tmp-{REACHED}"
        temporary.write_text(json.dumps({**vars(self), "adapters": pieces}), "utf-8")
        temporary.rename(folder / REACHED)


class Bench:
    """Performs runs one after the other; what they have in common is found once.

    `folder` keeps what the base says on replayed texts, `streams` how far runs have come
    that are cut off.
    """

    def __init__(self, folder: Path, streams: Path | None = None) -> None:
        self.folder = folder
        self.streams = streams or folder
        self._kept: dict[tuple[Path, Purpose, int, int], dict[str, str]] = {}

    def stream(self, run: LearningRun, base: Base) -> Path:
        """Where a run keeps how far it has come."""
        return self.streams / f"stream-{run.key}-{base.sha256[:12]}"

    def settle(self, run: LearningRun, base: Base) -> None:
        """Clear away how far a run has come whose row is kept: it has ended.

        Where another protocol continues it, its last adapters are left to that one.
        """
        folder = self.stream(run, base)
        if not folder.exists():
            return
        longer = next((one for one in PROTOCOLS.values() if run.protocol.begins(one)), None)
        heir = self.stream(replace(run, protocol=longer), base) if longer else None
        if heir is None or heir.exists():
            shutil.rmtree(folder)
            return
        for left in folder.glob("*-*"):
            if left.name not in {piece.path.name for piece in Reached.read(folder).adapters}:
                shutil.rmtree(left)
        folder.rename(heir)

    def keeps(self, model_dir: Path, run: LearningRun, judge: Judge) -> dict[str, str]:
        """What a model without any adapter answers of what the run is asked."""
        asked = (model_dir, run.purpose, run.problems, run.seed)
        if asked not in self._kept:
            self._kept[asked] = judge.keeps(_generator(model_dir), None)
        return self._kept[asked]


def perform(run: LearningRun, base: Base, bench: Bench) -> dict[str, Any]:
    """Learn and measure; one row of the results.

    A run that was cut off resumes after the last batch that it learnt, and one of more batches
    after the last of a shorter one.
    """
    judge = Judge.of(base, run.purpose, run.problems, run.seed)
    generator = _generator(base.model_dir)
    of_base = bench.keeps(base.bare_dir, run, judge)
    of_expert = bench.keeps(base.expert_dir, run, judge)
    folder = bench.stream(run, base)
    folder.mkdir(parents=True, exist_ok=True)
    reached = _stream(run, base, judge, generator, folder, bench.folder)
    return {
        "key": run.key,
        **run.named,
        "description": METHODS[run.method].description,
        "settings": run.settings,
        "base_hash": base.sha256,
        "base_answers": of_base,
        "expert_answers": of_expert,
        "batches": list(reached.measured),
        "seconds": round(reached.seconds, 1),
        "versions": _versions(),
        "machine": reached.machine,
    }


def _versions() -> dict[str, str]:
    """Of what learnt and measured; of palorad its commit."""
    found = {name: version(name) for name in ("torch", "transformers", "peft", "numpy")}
    return {**found, "python": platform.python_version(), "palorad": commit()}


def _generator(model_dir: Path) -> Generator:
    size = AT_ONCE if torch.cuda.is_available() else 128
    return Generator(model_dir, max_rank=2 * RANK_BUDGET, batch_size=size)


def _here() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return f"{platform.machine()}, {os.cpu_count()} cores, {device}"


def _stream(
    run: LearningRun,
    base: Base,
    judge: Judge,
    generator: Generator,
    folder: Path,
    records: Path,
) -> Reached:
    method, protocol = METHODS[run.method], run.protocol
    reached = Reached.read(folder)
    adapters = list(reached.adapters)
    learnt: list[FactBatch] = []
    for number in range(1, protocol.batches + 1):
        began = time.monotonic()
        made = contradicting if protocol.contradicts else batch
        asked = (number, protocol.facts, run.seed, run.purpose)
        learnt.append(made(*asked, paraphrases=method.paraphrases, prefixed=method.prefixed))
        if number <= reached.batches:
            continue
        report, replaced = None, []
        if method.learns and _matters(method, protocol, number):
            joined, rank = _joined(method, protocol.facts, adapters)
            kept = len(adapters) - joined
            adapters, replaced = adapters[:kept], adapters[kept:]
            scratch = from_scratch(method, protocol, number)
            before = range(number - 1) if scratch else chain(*(one.batches for one in replaced))
            piece = Piece(folder / f"adapter-{number}", (*before, number - 1), rank)
            start = replaced if method.lineage == "warm-start" and not scratch else ()
            plan = _plan(run, method, base, learnt, adapters, start, piece)
            report = (
                method.edit or partial(_train, method, folder, records / f"records-{run.base}")
            )(plan, piece.path)
            adapters.append(piece)
        measured = reached.measured
        if number in protocol.measured:
            lineage = [piece.path for piece in adapters]
            name = f"served-{number}" if lineage else None
            if name is not None:
                shutil.rmtree(folder / name, ignore_errors=True)
                compose(lineage, folder / name, base.name)
                generator.load(name, folder / name)
            found = {
                "batch": number,
                **accuracies(generator, name, learnt, method.context),
                **judge.keeps(generator, name),
                **_figures(report, folder / name if name else None),
            }
            measured = (*measured, found)
            if name is not None:
                generator.unload(name)
        seconds = reached.seconds + time.monotonic() - began
        reached = Reached(number, tuple(adapters), measured, seconds, reached.on(_here()))
        reached.write(folder)
        for piece in replaced:
            shutil.rmtree(piece.path, ignore_errors=True)
    return reached


def _train(method: Method, folder: Path, records: Path, plan: TrainPlan, out: Path) -> TrainReport:
    return train_adapter(
        plan,
        out=out,
        work=folder / f"work-{out.name}",
        recipe=method.recipe(),
        records=records,
    )


def _joined(method: Method, new: int, adapters: Sequence[Piece]) -> tuple[int, int]:
    """How many of the latest adapters give method to the one for `new` facts, and its rank.

    Of a stack whose rank budget is used up all of them, as in the product's consolidation.
    """
    known = sum(new * len(piece.batches) for piece in adapters)
    if method.lineage != "stack":
        return len(adapters), RANK_BUDGET
    rank = learning_rank(new, RANK, STACK_BUDGET - RANK)
    if over_budget(sum(piece.rank for piece in adapters), rank, STACK_BUDGET):
        return len(adapters), learning_rank(new + known, RANK, STACK_BUDGET - RANK)
    return 0, rank


def _matters(method: Method, protocol: Protocol, number: int) -> bool:
    """Whether anything that is measured depends on the adapter of the `number`th batch."""
    for later in range(number, protocol.batches + 1):
        if later > number and from_scratch(method, protocol, later):
            return False
        if later in protocol.measured:
            return True
    return False


def _plan(
    run: LearningRun,
    method: Method,
    base: Base,
    learnt: Sequence[FactBatch],
    adapters: Sequence[Piece],
    start: Sequence[Piece],
    piece: Piece,
) -> TrainPlan:
    own = piece.batches[-1:] if start else piece.batches
    facts = tuple(fact for n in reversed(own) for fact in learnt[n].facts)
    earlier = tuple(f for n, one in enumerate(learnt) if n not in own for f in one.facts)
    given = method.replays or method.calibrates
    config = method.config(run.rate).resolved("cpu", len(facts))
    return TrainPlan(
        kind=PlanKind.LEARN,
        rank=method.rank or piece.rank,
        seed=1000 * run.seed + len(learnt),
        model_dir=base.model_dir,
        base_hash=base.sha256,
        base_name=base.name,
        facts=facts,
        replay=earlier if given else (),
        known=Updates((*facts, *earlier)).unchanged(base.known) if given else (),
        reasoning=base.reasoning if given else (),
        lineage=tuple(one.path for one in adapters),
        start=tuple(one.path for one in start),
        probe_dir=base.probe_dir,
        protection=method.protection,
        config=config,
    )


def _figures(report: TrainReport | None, served: Path | None) -> dict[str, Any]:
    if report is None or served is None:
        return {"steps": 0, "train_seconds": 0.0, "norm": 0.0, "leak": 0.0, "free": RANK}
    return {
        "steps": report.steps,
        "train_seconds": round(report.seconds, 1),
        "norm": round(lora.read(served).norm(), 4),
        "leak": report.leak,
        "free": report.free,
    }
