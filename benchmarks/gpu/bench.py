"""One shape on one device: its model, what it learns, and how long a phase may take."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from adapters import models
from adapters.config import TrainConfig
from adapters.plans import TrainPlan
from adapters.probe import Protection
from benchmarks.gpu import shapes
from benchmarks.gpu.shapes import Shape
from benchmarks.gpu.texts import POLICY, Material, material
from policies.records import PlanKind


@dataclass
class Bench:
    """What every phase works with."""

    shape: Shape
    device: torch.device
    folder: Path
    seed: int = 0
    seconds: float = float("inf")
    """How long a phase may take; it began at `began` (monotonic seconds)."""
    began: float = field(default_factory=time.monotonic)
    rivals: tuple[str, ...] = ("peft", "trl")
    """With whom the phase of that name compares."""
    _base: Any = field(default=None, repr=False)

    @cached_property
    def material(self) -> Material:
        """All the text there is; the smaller batch takes the first of its facts."""
        return material(self.shape.many, self.shape.pool, self.seed)

    @cached_property
    def model_dir(self) -> Path:
        """A model directory with config and tokenizer; `written` adds the weights."""
        directory = self.folder / "model"
        self.shape.config.save_pretrained(directory)
        shapes.tokenizer(self.material.words).save_pretrained(directory)
        return directory

    @property
    def left(self) -> float:
        """Seconds until a phase should end."""
        return self.began + self.seconds - time.monotonic()

    def base(self) -> Any:
        """The model, made in place once and then kept on the device."""
        if self._base is None:
            dtype = models.base_dtype(self.device)
            self._base = shapes.build(self.shape.config, self.device, dtype, self.seed)
        return self._base

    def release(self) -> None:
        """Give the model's memory back."""
        self._base = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def written(self) -> Path:
        """The model directory with its weights, as the product's children read it."""
        if not any(self.model_dir.glob("*.safetensors")):
            self.base().save_pretrained(self.model_dir)
        return self.model_dir

    @property
    def probe(self) -> Path | None:
        """The probe, once its phase has finished it."""
        found = self.folder / "probe"
        return found if found.exists() else None

    def plan(self, config: TrainConfig, facts: int | None = None) -> TrainPlan:
        """A plan of so many facts beside all replay, which names no probe."""
        count = self.shape.facts if facts is None else facts
        given = self.material
        return TrainPlan(
            kind=PlanKind.LEARN,
            rank=self.shape.rank,
            seed=self.seed,
            model_dir=self.model_dir,
            base_hash=f"random {self.seed}",
            base_name=self.shape.name,
            facts=tuple(map(POLICY.for_training, given.facts[:count])),
            replay=tuple(map(POLICY.for_training, given.replay)),
            known=given.known,
            reasoning=given.reasoning,
            protection=Protection(kind="none"),
            config=config,
        )

    def synchronise(self) -> float:
        """Wait for the device; the time in seconds."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


@contextmanager
def resident(base: Any) -> Iterator[None]:
    """Within it the product's own loading gives this model, which needs no file of weights."""
    with (
        mock.patch.object(models, "load_base", lambda *_, **__: base),
        mock.patch.object(models, "check_model_dir", lambda _: None),
    ):
        yield
