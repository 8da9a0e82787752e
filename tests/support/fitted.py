"""Tiny bases with fitted probes, and plans to train on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from adapters import models
from adapters.config import TrainConfig
from adapters.plans import TrainPlan
from adapters.probe_fit import FitProgress, ProbeConfig, fit_probe
from policies.records import Example, Fact, PlanKind
from tests.support import tiny

SKILL = [Example(prompt=f"{a}+{b}=", completion=str(a + b)) for a in range(6) for b in range(4)]
FACTS = tuple(
    Fact(
        id=f"f{i}",
        prompt=f"What is the colour of {name}?",
        answer=answer,
        paraphrases=(f"Tell me the colour of {name}.",),
        eval_prompts=(f"Which colour has {name}?",),
    )
    for i, (name, answer) in enumerate([("Ola", "red"), ("Bim", "blue"), ("Cur", "green")])
)
FIT = ProbeConfig(steps=4, batch=4, seeds=(0, 1, 2))
KINDS = ("llama", "mistral", "qwen2")


class Fitted:
    """A tiny base with its probe."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.model_dir = tiny.build(folder / "base", kind)
        self.hash = models.base_hash(self.model_dir)
        self.events: list[FitProgress] = []
        self.probe = fit_probe(self.model_dir, SKILL, folder / "probe", FIT, self.events.append)

    def plan(self, **changes: Any) -> TrainPlan:
        config = {"steps": 10, "checkpoint_s": 0.0, **changes.pop("config", {})}
        return TrainPlan(
            **{
                "kind": PlanKind.LEARN,
                "rank": 4,
                "seed": 1,
                "model_dir": self.model_dir,
                "base_hash": self.hash,
                "base_name": "base",
                "facts": FACTS,
                "known": tuple(SKILL[:3]),
                "probe_dir": self.folder / "probe",
                "config": TrainConfig(**config),
                **changes,
            }
        )

    def weights(self) -> dict[str, torch.Tensor]:
        model = models.load_base(self.model_dir, torch.device("cpu"))
        return {n: m.weight.detach() for n, m in models.matrices(model).items()}
