"""What the trainer is asked for and what it reports: frozen, and JSON both ways."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from adapters.models import MLP
from adapters.probe import Protection
from policies.records import Example, Fact, PlanKind, Record

REFERENCE_RATE = 0.008
REFERENCE_WIDTH = 192


class TrainSettings(Record):
    """How an adapter is trained; what is None is chosen by need."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon takes every singular direction of a factor's momentum alike, so that what few texts ask
    for moves as far as what all do (arXiv 2509.26030)."""
    learning_rate: float | None = Field(default=None, gt=0.0)
    """None: 0.008 · 192 / hidden size, which is 3.8e-4 at a width of 4,096."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    warmup: int = Field(default=6, ge=0)
    """Steps of linear warm-up; the rate then falls linearly to 0."""
    scaling: float | None = Field(default=None, gt=0.0)
    """ΔW = scaling · B A; None: 4 / √rank, so that a step moves ΔW alike at any rank
    (Kalajdzievski, arXiv 2312.03732)."""
    clip: float = Field(default=1.0, gt=0.0)
    """Largest gradient norm."""
    steps: int | None = Field(default=None, ge=1)
    """Fixed number of steps; None: by the number of facts, as follows."""
    min_steps: int = Field(default=60, ge=1)
    """Where steps are chosen by need: so many, …"""
    steps_per_fact: int = Field(default=4, ge=0)
    """… and so many more for each fact, new or earlier, …"""
    base_steps: int = Field(default=150, ge=1)
    """… but no more than these, unless …"""
    epochs: int = Field(default=50, ge=1)
    """… each new one would be seen less often than this."""
    large_run_facts: int = Field(default=144, ge=1)
    """Facts, earlier or new ones, from which on a run takes longer, since each is replayed less
    often or there are more to keep apart; …"""
    steps_per_doubling: float = Field(default=1.5, ge=0.0)
    """… for each doubling of the more of them by this share of the steps."""
    max_steps: int = Field(default=2000, ge=1)
    stop_loss: float | None = Field(default=0.02, gt=0.0)
    """End early once the latest loss per token, in paraphrases that are trained, of every new fact
    is below, and that of the earlier ones on average; never in the first half of the steps."""
    cooldown: int = Field(default=12, ge=1)
    """Steps in which the rate falls to 0 after an early end was decided."""
    new_per_step: int = Field(default=12, ge=1)
    """Facts to learn in a step; of many more, at most twice as many (`facts_in_step`)."""
    sub_steps: int = Field(default=3, ge=1)
    """Steps that together take a usual batch once: what is held weighs against their facts as it
    would in one step, and with `sub_steps` = 1 each step is as large as all of them."""
    replayed_per_step: int = Field(default=24, ge=0)
    """Earlier facts replayed in a step, at most half of them."""
    known_per_step: int = Field(default=32, ge=0)
    """Texts of known facts in a step."""
    reasoning_per_step: int = Field(default=4, ge=0)
    """Solutions in a step, at most an eightieth of the pool (a small pool overfits)."""
    min_traces: int = Field(default=0, ge=0)
    """Solutions to replay at least: the base writes what is lacking itself (`synthesis`)."""
    kl_weight: float = Field(default=7.0, ge=0.0)
    """Weight of KL(frozen reference ‖ model) on known facts, averaged over their tokens; 0: they
    and the reasoning are learnt from their labels, like the new facts."""
    kl_weight_reasoning: float = Field(default=7.0, ge=0.0)
    """The same on reasoning."""
    entropy_weight: float = Field(default=2.0, ge=0.0)
    """How much more often solutions are drawn of which the reference is less sure: in proportion
    to 1 + entropy_weight · entropy / mean entropy; 0: all alike."""
    kl_decay_facts: int = Field(default=10, ge=1)
    """Facts, new and earlier, from which on both weights fall, as kl_decay_facts / facts, as far
    as to the new ones that `sub_steps` steps take: averaged over many facts, the loss of each
    would have too little to say against what is held."""
    temperature: float = Field(default=4.0, gt=0.0)
    """Of both distributions in that divergence: above 1, what the reference is sure of still has
    a gradient before it is lost."""
    max_length: int = Field(default=1024, ge=8)
    max_tokens: int | None = Field(default=None, ge=8)
    """Padded tokens in one forward pass; None: 4,096, on a CPU 512, where less padding is worth
    more than larger products. Halved when the device's memory is too small."""
    checkpoint_s: float = Field(default=20.0, ge=0.0)
    targets: tuple[str, ...] = MLP

    def large_batch(self) -> TrainSettings:
        """The same at full batch_preset: the new facts of all `sub_steps` in one step, twice as
        much beside them that is replayed, and somewhat more steps.

        More text a batch keeps more (benchmarks/notebook). Small steps pay where time goes
        with the text, as on a CPU; on a GPU a small step of a small model takes as long.
        """
        if self.sub_steps == 1:
            return self
        replayed = ("replayed_per_step", "known_per_step", "reasoning_per_step")
        texts = {name: 2 * self.sub_steps * getattr(self, name) for name in replayed}
        steps = round(1.5 * self.base_steps / self.sub_steps**0.2)
        new = self.sub_steps * self.new_per_step
        changed = {**texts, "new_per_step": new, "base_steps": steps, "sub_steps": 1}
        return self.model_copy(update=changed)

    def on_cpu(self, facts: int) -> TrainSettings:
        """As a processor takes so many facts: more than `large_run_facts` at full batch_preset,
        which is less than half of the steps and twice the replay.
        """
        return self.large_batch() if facts > self.large_run_facts else self

    def facts_in_step(self, facts: int) -> int:
        """How many of the `facts` to learn each step takes in turn.

        What is replayed costs the same in every step: with more facts in each, many facts need
        fewer steps.
        """
        part = min(facts // (3 * self.sub_steps), 2 * self.new_per_step)
        return min(facts, max(self.new_per_step, part))

    def held(self, facts: int, earlier: int = 0) -> float:
        """The part of both weights that is left where so many facts are to be learnt or replayed.

        Of a step's facts the new ones alone divide the loss. So what is held weighs the same
        against an earlier fact whether ten or five hundred new ones stand beside it.
        """
        crowd = min(facts + earlier, self.sub_steps * self.facts_in_step(facts))
        return min(1.0, self.kl_decay_facts / crowd)

    def scale(self, rank: int) -> float:
        """The scaling of an adapter of this rank."""
        return 4 / math.sqrt(rank) if self.scaling is None else self.scaling


STACKED = TrainSettings(
    scaling=2.0,
    base_steps=110,
    epochs=64,
    steps_per_doubling=0.0,
    new_per_step=36,
    sub_steps=1,
    replayed_per_step=40,
    known_per_step=24,
    reasoning_per_step=16,
    kl_weight=2.5,
    kl_weight_reasoning=6.0,
    temperature=2.0,
)
"""For adapters on top of each other: a stack is short, and held as hard as one that goes on, the
adapter that consolidates it recalls too little."""


class TrainPlan(Record):
    """Everything that one training run depends on."""

    kind: PlanKind
    rank: int = Field(ge=1)
    seed: int
    model_dir: Path
    base_hash: str
    base_name: str
    facts: tuple[Fact, ...]
    """The facts to learn: new ones, or all valid ones when an adapter replaces the lineage."""
    reversed_facts: tuple[Fact, ...] = ()
    """The same the other way round, learnt beside them and not reported."""
    replay: tuple[Fact, ...] = ()
    """Earlier facts to replay."""
    known: tuple[Example, ...] = ()
    reasoning: tuple[Example, ...] = ()
    lineage: tuple[Path, ...] = ()
    """Directories of the earlier adapters, active and frozen; empty on the bare base."""
    start: tuple[Path, ...] = ()
    """Earlier adapters whose place the new one takes: it begins with their sum."""
    probe_dir: Path | None = None
    protection: Protection = Protection()
    settings: TrainSettings = TrainSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.facts:
            raise ValueError("a plan needs at least one fact")
        if self.kind is not PlanKind.LEARN and self.lineage:
            raise ValueError(f"{self.kind} trains on the bare base: its lineage is empty")
        if self.kind is not PlanKind.LEARN and self.start:
            raise ValueError(f"{self.kind} begins afresh: it goes on from no adapter")
        if self.protection.kind != "none" and self.probe_dir is None:
            raise ValueError(f"protection {self.protection.kind!r} needs a probe")
        return self


class TrainProgress(Record):
    """How far a run has come."""

    step: int
    steps: int
    loss: float
    seconds_left: float | None


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
