"""What the trainer is given and what it reports: frozen, and JSON both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from adapters.config import TrainConfig
from adapters.probe import Protection
from policies.records import Example, Fact, PlanKind, Record


class TrainPlan(Record):
    """Everything that one training run depends on."""

    kind: PlanKind
    rank: int = Field(ge=1)
    seed: int
    model_dir: Path
    base_hash: str
    base_name: str
    facts: tuple[Fact, ...]
    """The facts to learn: new ones, or all valid ones for an adapter from scratch."""
    reversed_facts: tuple[Fact, ...] = ()
    """Their reversed questions, learnt beside them and not reported."""
    replay: tuple[Fact, ...] = ()
    """Earlier facts to replay."""
    known: tuple[Example, ...] = ()
    reasoning: tuple[Example, ...] = ()
    lineage: tuple[Path, ...] = ()
    """Directories of the earlier adapters, active and frozen; empty on the bare base."""
    start: tuple[Path, ...] = ()
    """Earlier adapters that the new one replaces: its warm start is their sum."""
    probe_dir: Path | None = None
    protection: Protection = Protection()
    config: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.facts:
            raise ValueError("a plan needs at least one fact")
        if self.kind is not PlanKind.LEARN and self.lineage:
            raise ValueError(f"{self.kind} trains on the bare base: its lineage is empty")
        if self.kind is not PlanKind.LEARN and self.start:
            raise ValueError(f"{self.kind} trains from scratch: it has no warm start")
        if self.protection.kind != "none" and self.probe_dir is None:
            raise ValueError(f"protection {self.protection.kind!r} needs a probe")
        return self


class TrainProgress(Record):
    """How far a run has come."""

    step: int
    steps: int
    loss: float
    seconds_left: float | None
    stopping: bool = False
    """Whether the run was asked to stop: it has left a checkpoint and takes no further step."""


class TrainReport(Record):
    """What a run did, with the figures that its saved tensors were checked for."""

    kind: PlanKind
    rank: int
    steps: int
    stopped_early: bool
    facts: int
    replayed: int
    trainable: int
    """Trained values."""
    seconds: float
    loss_first: float
    loss_last: float
    norm: float
    """‖ΔW‖ over all matrices."""
    leak: float
    """Largest share of a saved factor's norm in the protected space (hard parts)."""
    free: int
    """Smallest free dimension of any matrix."""
    admissible: float | None
    """‖P_L G P_R‖²/‖G‖² of the first gradient; None after a resume."""
    unlearnt: tuple[str, ...]
    """Facts whose latest loss per token is above 0.5."""
    warnings: tuple[str, ...] = ()
