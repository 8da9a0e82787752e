"""[probe], [protection] and [train]: what is planned, fitted and learnt."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast
from unittest import mock

from adapters.plans import TrainProgress
from adapters.trainer import train_adapter
from daemon.children.jobs import Progress
from daemon.children.worker import StepContext
from daemon.config.settings import Settings
from daemon.loop.requests import probe_request
from daemon.training import child, together
from daemon.training.messages import TrainRequest
from policies.gate.records import Outcome
from policies.planning import Step
from policies.records import Fact
from tests.config.effects import Effect, Observe
from tests.support.fitted import Fitted
from tests.support.world import World


@cache
def _fitted(folder: Path) -> Fitted:
    return Fitted(folder, "llama")


def fitted(root: Path) -> Fitted:
    """A tiny model with its probe, made once for all observations of a run."""
    return _fitted(root.parents[1] / "fitted for effects")


def own_probe(root: Path) -> Path:
    return fitted(root).folder / "probe"


# --- plans -----------------------------------------------------------------------------------


def world(settings: Settings, root: Path) -> World:
    made = World(root)
    made.settings = settings
    made.crash()
    return made


def capitals(number: int, count: int, **more: Any) -> list[Fact]:
    names = [f"Land {number}{chr(97 + n)}" for n in range(count)]
    return [
        Fact(
            id=name.replace(" ", ""),
            prompt=f"What is the capital of {name}?",
            answer=f"Port {name[5:]}",
            subject=name,
            relation="capital",
            **more,
        )
        for name in names
    ]


def until(made: World, step: Step) -> Any:
    """The request of the next child that does this step; the ones before it report."""
    for _ in range(20):
        made.tick()
        if made.running is not None and made.jobs.started[-1][0] == step.value:
            return made.jobs.requests[made.running]
        if made.running is not None:
            made.finish()
    return None


def planned(*batches: int) -> Observe:
    """Each plan: its kind, rank and seed, how many facts it learns, and what it replaces."""

    def observe(settings: Settings, root: Path) -> object:
        made = world(settings, root)
        for number, count in enumerate(batches):
            made.admit(f"b{number}", capitals(number, count))
            made.settle()
        return [
            (
                head.kind,
                head.rank,
                head.seed,
                head.facts,
                len(head.replaces),
            )
            for head in made.ledger.plans.heads()
        ]

    return observe


def begun(settings: Settings, root: Path) -> object:
    """Whether two waiting facts are planned at the first look."""
    made = world(settings, root)
    made.admit("b", capitals(0, 2))
    return type(made.tick()).__name__


def replayed(settings: Settings, root: Path) -> object:
    """How many earlier facts of each batch are replayed beside the fourth."""
    made = world(settings, root)
    for number in range(3):
        made.admit(f"b{number}", capitals(number, 4))
        made.settle()
    made.admit("b3", capitals(3, 1))
    request: TrainRequest = until(made, Step.TRAIN)
    return [sum(fact.id.startswith(f"Land{n}") for fact in request.replay) for n in range(3)]


def retried(settings: Settings, root: Path) -> object:
    """How many plans a fact gets that is never learnt."""
    made = world(settings, root)
    made.admit("b", capitals(0, 2))
    for _ in range(60):
        made.tick(60)
        if made.running is not None:
            made.finish(Outcome.PASS, missed=lambda fact: fact.id == "Land0a")
    return len(made.ledger.plans.heads())


def failing(*pauses: float) -> Observe:
    """Each failure of a step, and what is begun after each pause."""

    def observe(settings: Settings, root: Path) -> object:
        made = world(settings, root)
        made.admit("b", capitals(0, 2))
        until(made, Step.TRAIN)
        seen: list[object] = []
        for pause in pauses:
            if made.running is None:
                break
            made.fail()
            made.tick()
            made.tick(pause)
            seen.append((made.ledger.plans.heads()[0].state, made.running is not None))
        return seen

    return observe


def overdue(settings: Settings, root: Path) -> object:
    """How often a child that never ends has failed after 100 seconds."""
    made = world(settings, root)
    made.admit("b", capitals(0, 2))
    until(made, Step.TRAIN)
    made.tick(100)
    return made.ledger.plans.heads()[0].attempts


# --- probe -----------------------------------------------------------------------------------


@dataclass
class At:
    """A desk with a request and no directory."""

    request: str
    workdir: Path
    stopping: bool = False

    def end_if_asked(self) -> None: ...

    def progress(self, progress: Progress) -> None: ...


def fit(settings: Settings, root: Path) -> object:
    """What is fitted on which skill, and the probe and the model that are then used."""
    desk = cast(StepContext, At(probe_request(settings).model_dump_json(), root))
    with (
        mock.patch.object(child, "fit_probe") as fit_probe,
        mock.patch.object(child, "fold_expert", return_value=fitted(root).model_dir) as fold,
    ):
        report = child.probe(desk)
    asked = [call.args[1:4] for call in fit_probe.call_args_list]
    return asked, fold.called, report.probe


# --- training --------------------------------------------------------------------------------


class Enough(Exception):
    """Enough steps have been seen."""


def learnt(settings: Settings, root: Path) -> object:
    """How many steps the training of a second batch takes, and the losses of its first three."""
    made = world(settings, root)
    for number in range(2):
        made.admit(f"b{number}", capitals(number, 3, eval_prompts=(f"Which port {number}?",)))
        if not number:
            made.settle()
    request: TrainRequest = until(made, Step.TRAIN)
    base = fitted(root)
    request = request.model_copy(
        update={
            "model_dir": base.model_dir,
            "base_sha256": base.hash,
            "probe": base.folder / "probe" if request.probe else None,
            "start": (),
            "lineage": (),
        }
    )
    seen: list[object] = []

    def progress(progress: TrainProgress) -> None:
        seen.append((progress.steps, progress.loss))
        if len(seen) == 3:
            raise Enough

    try:
        train_adapter(
            child.train_plan(request), out=root / "out", work=root / "work", progress=progress
        )
    except Enough:
        return seen
    raise AssertionError("fewer than three steps")


def launched(settings: Settings, root: Path) -> object:
    """In how many processes the next adapter is trained; 0 where it is the leased child itself."""
    made = world(settings, root)
    made.admit("b", capitals(0, 2))
    request: TrainRequest = until(made, Step.TRAIN)
    desk = cast(StepContext, At(request.model_dump_json(), root))
    with (
        mock.patch.object(child, "train_adapter", side_effect=Enough),
        mock.patch.object(together, "training_places", return_value=(8, "GPUs")),
        mock.patch.object(together, "launch", side_effect=Enough) as launch,
        contextlib.suppress(Enough),
    ):
        child.train(desk)
    return [call.args[1] for call in launch.call_args_list]


def rows(completion: str, count: int) -> Callable[[Path], Path]:
    """A file of examples."""

    def write(root: Path) -> Path:
        path = root / f"{completion}-{count}.jsonl"
        lines = ({"prompt": f"{n} and {n}?", completion: str(2 * n)} for n in range(count))
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write


TEXT = {
    "train.replay.known": rows("answer", 60),
    "train.replay.reasoning": rows("solution", 160),
    "train.replay.min_traces": 0,
    "train.batch_preset": "small",
    "train.rank_budget": 4,
    "train.rank": 4,
}
SKILL = {
    "model.path": lambda root: fitted(root).model_dir,
    "probe.skill": rows("solution", 8),
    "probe.path": "",
}
SVF = {**SKILL, "protection.kind": "svf"}
STACK = {"train.lineage": "stack"}
EFFECTS: dict[str, Effect] = {
    "probe.skill": Effect(fit, rows("solution", 9), SKILL),
    "probe.path": Effect(fit, own_probe, SKILL),
    "probe.serve": Effect(fit, "expert", {**SKILL, "probe.path": own_probe}),
    "probe.seeds": Effect(fit, (0, 1), SVF),
    "probe.steps": Effect(fit, 7, SVF),
    "probe.learning_rate": Effect(fit, 0.01, SVF),
    "protection.kind": Effect(learnt, "none", TEXT),
    "protection.form": Effect(learnt, "soft", TEXT),
    "protection.share": Effect(learnt, 0.1, TEXT),
    "train.method": Effect(planned(2, 2), "palora"),
    "train.processes": Effect(launched, 2, TEXT),
    "train.rank": Effect(planned(20), 8, STACK),
    "train.rank_budget": Effect(planned(2), 64),
    "train.lineage": Effect(planned(2, 2), "stack"),
    "train.paraphrases": Effect(learnt, 2, TEXT),
    "train.prefixed": Effect(learnt, True, TEXT),
    "train.batch_preset": Effect(learnt, "large", TEXT),
    "train.epochs": Effect(learnt, 100, TEXT),
    "train.retrain_at": Effect(planned(2, 2), 2),
    "train.reversed_questions": Effect(learnt, True, TEXT),
    "train.max_facts": Effect(planned(5), 2),
    "train.min_facts": Effect(begun, 3, {"train.max_wait_s": 1000}),
    "train.max_wait_s": Effect(begun, 1000, {"train.min_facts": 3}),
    "train.quiet_hours": Effect(begun, ("* * * * *",)),
    "train.max_replay": Effect(replayed, 6),
    "train.relearn": Effect(retried, 0),
    "train.seed": Effect(planned(2), 7),
    "train.deadline_s": Effect(overdue, 50),
    "train.attempts": Effect(failing(100.0, 100.0), 1),
    "train.backoff_s": Effect(failing(10.0), 60),
    "train.replay.known": Effect(learnt, "", TEXT),
    "train.replay.reasoning": Effect(learnt, "", TEXT),
    "train.replay.min_traces": Effect(learnt, 240, TEXT),
}
