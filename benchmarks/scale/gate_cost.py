"""What the gate costs beside training: on paper at real size, and measured on SmolLM2."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, Final

from adapters import lora, models
from adapters.config import TrainConfig
from adapters.generate import Generator, Request
from adapters.plans import TrainPlan, TrainProgress
from adapters.probe import Protection
from adapters.schedule import steps_needed
from adapters.trainer import train_adapter
from benchmarks.gpu.runs import TIMED, Enough
from benchmarks.gpu.storing import random_adapter
from benchmarks.gpu.texts import POLICY, material
from benchmarks.provenance import ROOT
from benchmarks.scale import cost
from benchmarks.scale.cost import H100, LLAMA_8B, LLAMA_70B, Model
from daemon.training.child import read_examples
from policies.records import PlanKind
from smol.checkpoint import FOLDER

DEMO: Final = ROOT / "docs/demo-smol.json"
RANK: Final = 128
FACTS: Final = 36
QUESTIONS: Final = 100
STEPS: Final = 3
LONGEST: Final = 40
"""Tokens of an answer, at most."""


def run() -> dict[str, Any]:
    """Seconds of training and of a verdict for 36 facts, and the second over the first."""
    paper = {model.name: on_paper(model) for model in (LLAMA_8B, LLAMA_70B)}
    return {"gate_cost": {"paper": paper, "asked": asked(), "demonstration": recorded(DEMO)}}


def on_paper(model: Model) -> dict[str, float]:
    """By the cost model, on as few H100s as hold the base, beside 360 earlier facts."""
    gpus = cost.fewest(model, H100)
    train = cost.batch_of(model, H100, FACTS, 360, gpus=gpus).seconds
    return _share(train, cost.gate_seconds(model, H100, gpus=gpus)) | {"gpus": gpus}


def recorded(path: Path) -> dict[str, float] | None:
    """The mean over the files of a recorded demonstration; None where none was recorded."""
    if not path.exists():
        return None
    learnt = [one["seconds"] for one in json.loads(path.read_text())["revisions"] if one["seconds"]]
    return _share(*(fmean(one[stage] for one in learnt) for stage in ("train", "evaluate")))


def asked(folder: Path = FOLDER) -> dict[str, float] | None:
    """From a few steps, and a hundred questions asked of the base and of an adapter.

    In seconds of a core, as this process counts them, whatever else the machine does.

    A verdict asks candidate and live all questions of the model's own suites, and each new fact
    twice. None where the model is not there (`make real-model smol-known`).
    """
    data = folder / "data"
    suites = [data / "reasoning-gate.jsonl", data / "locality.jsonl"]
    if not all(path.exists() for path in suites):
        return None
    lines = [json.loads(line) for path in suites for line in path.read_text().splitlines()]
    prompts = [line["prompt"] for line in lines]
    step, answer, slower = _step_seconds(folder), *_question_seconds(folder, prompts)
    steps = steps_needed(TrainConfig().resolved("cpu", FACTS), FACTS)
    questions = 2 * (len(prompts) + 2 * FACTS)
    return {
        **_share(steps * step, questions * answer),
        "step_s": round(step, 2),
        "steps": steps,
        "question_s": round(answer, 3),
        "questions": questions,
        "adapter_ratio": round(slower, 3),
    }


def _share(train: float, gate: float) -> dict[str, float]:
    return {"train_s": round(train, 1), "gate_s": round(gate, 1), "ratio": round(gate / train, 3)}


def _step_seconds(folder: Path) -> float:
    """The mean of a few steps after the first, at the settings of a CPU."""
    moments: list[float] = []

    def after(_: TrainProgress) -> None:
        moments.append(time.process_time())
        if len(moments) > STEPS:
            raise Enough

    try:
        with TemporaryDirectory() as work:
            train_adapter(_plan(folder), out=Path(work, "o"), work=Path(work, "w"), progress=after)
    except Enough:
        pass
    return (moments[-1] - moments[0]) / STEPS


def _plan(folder: Path) -> TrainPlan:
    data = folder / "data"
    facts = material(FACTS, (0, 0, 0)).facts
    return TrainPlan(
        kind=PlanKind.LEARN,
        rank=RANK,
        seed=0,
        model_dir=folder,
        base_hash=models.base_hash(folder),
        base_name=folder.name,
        facts=tuple(map(POLICY.for_training, facts)),
        known=tuple(read_examples(data / "known-replay.jsonl", "answer")),
        reasoning=tuple(read_examples(data / "skill.jsonl", "solution")),
        protection=Protection(kind="none"),
        config=TrainConfig(**TIMED).resolved("cpu", FACTS),
    )


def _question_seconds(folder: Path, prompts: list[str]) -> tuple[float, float]:
    """Seconds of a question, the mean of base and adapter; and the adapter's over the base's."""
    generator = Generator(folder, max_rank=RANK)
    requests = [
        Request(generator.encode_chat([{"role": "user", "content": one}]), max_tokens=LONGEST)
        for one in prompts[:: max(1, len(prompts) // QUESTIONS)][:QUESTIONS]
    ]
    with TemporaryDirectory() as work:
        lora.write(Path(work), random_adapter(generator.model, RANK, 0), folder.name)
        generator.load("candidate", Path(work))
    seconds = []
    for name in (None, "candidate"):
        began = time.process_time()
        generator.generate(name, requests)
        seconds.append((time.process_time() - began) / len(requests))
    return fmean(seconds), seconds[1] / seconds[0]
