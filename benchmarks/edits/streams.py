"""One run: a method learns a stream of batches of edits and is measured on the way."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

from adapters import files
from adapters.compose import compose
from adapters.generate import Generator
from adapters.plans import TrainPlan
from benchmarks.edits import drift, sets
from benchmarks.edits.asking import EditAsker
from benchmarks.edits.material import RUNS, RealBase
from benchmarks.edits.methods import METHODS, EditMethod
from benchmarks.edits.rivals import WIDEST
from benchmarks.provenance import commit
from daemon.config.settings import Settings
from policies.facts.updates import Updates
from policies.lineage import learning_rank, over_budget
from policies.records import Fact, PlanKind, content_id

RANK: Final = 16
RANK_BUDGET: Final = 128
REACHED: Final = "reached.json"


@dataclass(frozen=True)
class EditProtocol:
    """How many batches of how many edits, and after which of them it is measured."""

    name: str
    batches: int
    size: int
    measured: tuple[int, ...]


PROTOCOLS: Final = {
    one.name: one
    for one in (
        EditProtocol("one", 1, 36, (1,)),
        EditProtocol("ten", 10, 36, (1, 5, 10)),
        EditProtocol("forty", 40, 12, (1, 20, 40)),
    )
}


@dataclass(frozen=True)
class EditRun:
    """Everything that a row depends on; `rate` is a multiple of the product's, None its own."""

    base: str
    dataset: sets.Dataset
    protocol: str
    method: str
    seed: int
    rate: float | None = None

    @property
    def key(self) -> str:
        """Another for another setting of the method."""
        method = METHODS[self.method]
        settings = {
            "train": method.config(self.rate).model_dump(mode="json", exclude_defaults=True),
            "protection": method.protection.model_dump(mode="json"),
            "form": [method.lineage, method.learns_from, method.known, method.context],
        }
        return content_id(json.dumps(asdict(self)), json.dumps(settings, sort_keys=True))


@dataclass
class EditsReached:
    """How far a stream has come: batches learnt, its adapters, what was measured, its seconds."""

    batches: int = 0
    adapters: list[str] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    measured: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def read(cls, folder: Path) -> EditsReached:
        """Where the run was cut off; the beginning where it was not begun."""
        path = folder / REACHED
        return cls(**json.loads(path.read_text("utf-8"))) if path.exists() else cls()

    def write(self, folder: Path) -> None:
        """Whole or not at all."""
        files.write_text(folder / REACHED, json.dumps(asdict(self)))


def perform(
    run: EditRun, base: RealBase, edits: list[sets.Edit], asker: EditAsker
) -> dict[str, Any]:
    """Learn and measure; one row. A run that was cut off resumes after its last batch."""
    method, protocol = METHODS[run.method], PROTOCOLS[run.protocol]
    folder = RUNS / f"stream-{run.key}-{base.sha256[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    reached = EditsReached.read(folder)
    stream = sets.batches(edits, protocol.batches, protocol.size, run.seed)
    for number in range(reached.batches + 1, protocol.batches + 1):
        began = time.monotonic()
        learnt = stream[:number]
        if method.learns:
            _learn(run, base, method, learnt, asker, folder, reached)
        reached.seconds += time.monotonic() - began
        if number in protocol.measured:
            served = _served(folder, reached, base)
            reached.measured.append(
                {
                    "batch": number,
                    **_asked(asker, served, learnt, method),
                    "general_kl": drift.general_kl(
                        base.model_dir, base.sha256, served, RUNS / "records"
                    ),
                    "seconds": round(reached.seconds, 1),
                }
            )
        reached.batches = number
        reached.write(folder)
    row = {
        "key": run.key,
        **asdict(run),
        "description": method.description,
        "base_hash": base.sha256,
        "base_reasoning": asker.reasoning_of_base(),
        "batches": reached.measured,
        "versions": _versions(),
        "machine": _machine(),
    }
    shutil.rmtree(folder)
    return row


def _learn(
    run: EditRun,
    base: RealBase,
    method: EditMethod,
    learnt: Sequence[Sequence[sets.Edit]],
    asker: EditAsker,
    folder: Path,
    reached: EditsReached,
) -> None:
    """Train the adapter of the last batch of `learnt`; `reached` then names it."""
    *earlier, new = [_facts(one, method, asker) for one in learnt]
    replay = tuple(fact for one in earlier for fact in one)
    facts, lineage, start, rank = new, reached.adapters, [], RANK_BUDGET
    if method.lineage == "warm-start":
        lineage, start = [], reached.adapters
    else:
        rank = learning_rank(len(new), RANK, RANK_BUDGET)
        if over_budget(sum(reached.ranks), rank, RANK_BUDGET):
            facts, replay, lineage = (*replay, *new), (), []
            rank = learning_rank(len(facts), RANK, RANK_BUDGET)
    everything = (*facts, *replay)
    plan = TrainPlan(
        kind=PlanKind.LEARN,
        rank=rank,
        seed=1000 * run.seed + len(learnt),
        model_dir=base.model_dir,
        base_hash=base.sha256,
        base_name=base.name,
        facts=facts,
        replay=replay if method.replays else (),
        known=Updates(everything).unchanged(base.known(method.known)) if method.replays else (),
        reasoning=base.traces if method.replays else (),
        lineage=tuple(folder / name for name in lineage),
        start=tuple(folder / name for name in start),
        probe_dir=base.probe_dir if method.protection.kind != "none" else None,
        protection=method.protection,
        config=method.config(run.rate),
    )
    name = f"adapter-{len(learnt)}"
    method.train(
        plan,
        out=folder / name,
        work=folder / f"work-{len(learnt)}",
        recipe=method.recipe(),
        records=RUNS / "records",
    )
    reached.adapters, reached.ranks = [*lineage, name], [*reached.ranks[: len(lineage)], rank]


def _facts(batch: Sequence[sets.Edit], method: EditMethod, asker: EditAsker) -> tuple[Fact, ...]:
    """The edits as the daemon trains them: admitted, and in all paraphrases of its policy."""
    policy = Settings().paraphrase_policy
    said = asker.sentences(batch) if method.learns_from == "sentence" else {}
    facts = []
    for edit in batch:
        fact = edit.fact.model_copy(update={"answer": said.get(edit.prompt, edit.answer)})
        facts.append(policy.for_training(policy.for_admission(fact)))
    return tuple(facts)


def _served(folder: Path, reached: EditsReached, base: RealBase) -> Path | None:
    if not reached.adapters:
        return None
    out = folder / f"served-{reached.adapters[-1]}"
    shutil.rmtree(out, ignore_errors=True)
    compose([folder / name for name in reached.adapters], out, base.name)
    return out


def _asked(
    asker: EditAsker, served: Path | None, learnt: Sequence[Sequence[sets.Edit]], method: EditMethod
) -> dict[str, Any]:
    if served is None:
        return asker.measure(None, learnt, method.context)
    asker.generator.load("served", served)
    try:
        return asker.measure("served", learnt, method.context)
    finally:
        asker.generator.unload("served")


def asker_of(base: RealBase) -> EditAsker:
    """One for all runs of a base."""
    return EditAsker(base, Generator(base.model_dir, max_rank=WIDEST))


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in ("torch", "transformers", "peft", "numpy")}
    return {**found, "python": platform.python_version(), "palorad": commit()}


def _machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return f"{platform.machine()}, {os.cpu_count()} cores, {device}"
