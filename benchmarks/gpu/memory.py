"""What a step takes of the device's memory, by part, as it is allocated."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adapters import memory
from adapters.attach import Attached
from adapters.config import TrainConfig
from adapters.losses import Objective
from adapters.passes import Passes
from adapters.plans import TrainPlan
from adapters.projection import Protected
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.runs import SHARE, Watched, timed, usual


@dataclass
class Weighed(Watched):
    """Notes what is allocated around each stage of a run, in bytes."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    parts: dict[str, int] = field(default_factory=dict)
    pass_peak: int = 0
    attached_at: int = 0

    def protected(self, base: Any, plan: TrainPlan) -> Mapping[str, Protected]:
        """As drawn; before it there is only the base."""
        self.parts["base"] = allocated(self.device)
        return super().protected(base, plan)

    def attach(self, base: Any, plan: TrainPlan) -> Attached:
        """As the product."""
        before = allocated(self.device)
        attached = super().attach(base, plan)
        self.attached_at = allocated(self.device)
        self.parts["factors"] = self.attached_at - before
        return attached

    def optimizer(
        self, factors: Sequence[Tensor], config: TrainConfig, rate: float
    ) -> torch.optim.Optimizer:
        """As the product; until then the protection has been placed."""
        self.parts["protection"] = allocated(self.device) - self.attached_at
        return super().optimizer(factors, config, rate)

    def gradients(
        self, model: Any, objective: Objective, passes: Passes
    ) -> tuple[float, dict[str, float]]:
        """As the product."""
        before = allocated(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        found = super().gradients(model, objective, passes)
        self.parts["gradients"] = allocated(self.device) - before
        if self.device.type == "cuda":
            highest = torch.cuda.max_memory_allocated(self.device) - before
            self.pass_peak = max(self.pass_peak, highest)
        return found

    def update(self, model: Any, optimizer: torch.optim.Optimizer) -> None:
        """As the product."""
        super().update(model, optimizer)
        states = (t for state in optimizer.state.values() for t in state.values())
        held = (t for t in states if isinstance(t, Tensor) and t.device.type == self.device.type)
        self.parts["moments"] = sum(one.nbytes for one in held)


def allocated(device: torch.device) -> int:
    """Bytes that tensors hold on the device; on a CPU those that the interpreter can see."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device)
    gc.collect()
    tensors = (one for one in gc.get_objects() if issubclass(type(one), Tensor))
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    return sum(storages.values())


def run(bench: Bench) -> dict[str, Any]:
    """Gigabytes (10⁹ bytes) by part. `passes_gb` is the most that forward and backward passes took
    beside what was there before them; only a GPU's allocator can say it."""
    base = bench.base()
    recipe = Weighed(device=bench.device)
    config: TrainConfig = usual(bench)
    timed(bench, config, recipe, most=3, within=bench.left / 3)
    on_gpu = bench.device.type == "cuda"
    parts = {name: _gb(size) for name, size in recipe.parts.items()}
    passes = recipe.pass_peak if on_gpu else None
    return {
        "parts_gb": parts,
        "passes_gb": None if passes is None else _gb(passes),
        "peak_gb": None if passes is None else _gb(recipe.parts["base"] + _beside(recipe, passes)),
        "weights_gb": _gb(sum(one.nbytes for one in base.parameters())),
        "computed_gb": computed(bench),
    }


def computed(bench: Bench) -> dict[str, float]:
    """What the table by shapes says of the same step."""
    model = memory.Model.of(bench.shape.config.to_dict())
    if model is None:
        raise ValueError(f"{bench.shape.name}: its config lacks what is counted: {memory.COUNTED}")
    on_gpu = bench.device.type == "cuda"
    how = memory.Training(bench.shape.rank, "cuda" if on_gpu else "cpu", share=SHARE)
    parts = memory.on_device(model, how)
    return {name: _gb(size) for name, size in (*parts.by_name.items(), ("total", parts.total))}


def _beside(recipe: Weighed, passes: int) -> int:
    return sum(recipe.parts[name] for name in ("protection", "factors", "moments")) + passes


def _gb(size: int) -> float:
    return round(size / 1e9, 6)
