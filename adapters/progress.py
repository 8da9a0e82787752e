"""The state of a run between steps, and the report at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from adapters import lora, projection
from adapters.errors import BrokenAdapter, TrainingDiverged
from adapters.plans import TrainPlan, TrainReport
from adapters.projection import Protected

LEAK_BOUND = 5e-3
LOW_SHARE = 0.3
UNLEARNT = 0.5


@dataclass
class State:
    """What changes from step to step besides the weights; goes into checkpoints."""

    first_loss: float = math.nan
    last_loss: float = math.nan
    stopped: int | None = None
    end: int | None = None
    latest: dict[str, float] | None = None

    def note(self, loss: float, rows: Mapping[str, float]) -> None:
        """Remember the loss of a step and of each fact in it."""
        self.first_loss = loss if math.isnan(self.first_loss) else self.first_loss
        self.last_loss = loss
        self.latest = {**(self.latest or {}), **rows}


def conclude(
    plan: TrainPlan,
    out: Path,
    protected: Mapping[str, Protected],
    state: State,
    steps: int,
    free: int,
    admissible: float | None,
    seconds: float,
) -> TrainReport:
    """Check what was saved, as it was saved, and say what happened."""
    written = lora.read(out)
    if not all(bool(torch.isfinite(t).all()) for pair in written.factors.values() for t in pair):
        raise TrainingDiverged("the trained factors hold NaN or infinite values")
    leak = projection.worst_leak(written.factors, protected)
    if leak > LEAK_BOUND:
        raise BrokenAdapter(
            str(out), (f"leaks {leak:.1e} into the protected space, bound {LEAK_BOUND:.0e}",)
        )
    notes = []
    if admissible is not None and admissible < LOW_SHARE:
        notes.append(
            f"only {admissible:.0%} of the gradient is admissible: "
            "a smaller [protection] share would learn faster and protect less"
        )
    latest = state.latest or {}
    return TrainReport(
        kind=plan.kind,
        rank=plan.rank,
        steps=state.end or steps,
        stopped_early=state.end is not None,
        facts=len(plan.facts),
        replayed=len(plan.replay),
        trainable=sum(t.numel() for pair in written.factors.values() for t in pair),
        seconds=seconds,
        loss_first=state.first_loss,
        loss_last=state.last_loss,
        norm=written.norm(),
        leak=leak,
        free=free,
        admissible=admissible,
        unlearnt=tuple(f.id for f in plan.facts if latest.get(f.id, math.inf) > UNLEARNT),
        warnings=tuple(notes),
    )
