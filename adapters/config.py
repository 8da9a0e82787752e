"""How one adapter is trained: one frozen config that settings, requests and plans carry whole.

Importable without torch, so that the daemon's settings can hold it.
"""

from __future__ import annotations

import math
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

BatchPreset = Literal["auto", "small", "large"]

MLP: Final = ("gate_proj", "up_proj", "down_proj")


class AdapterChoices(BaseModel):
    """What a user may choose of it: these fields are part of [train]."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    reversed_questions: bool = False
    """Whether facts of relations whose value belongs to one subject (capital, ticker symbol, …) are
    also learnt as reversed questions: "Which country has Thimphu as its capital?" """
    epochs: int = Field(default=50, ge=1)
    """How often each new fact is read in training, at least (a run has 2,000 steps at most). If
    there are few facts, each is read more often anyway. More epochs keep more of everything and
    take longer. Not in a stack."""
    batch_preset: BatchPreset = "auto"
    """How much text a step reads. "large" reads about six times as much as "small", and keeps more
    of the new and of the earlier facts. "auto" is large on a GPU; on a CPU it is small, but large
    for a plan with more than 144 new facts. Not in a stack."""


class TrainConfig(AdapterChoices):
    """Everything about how one adapter is trained; what is None is chosen by need.

    The number of steps follows from `min_steps` to `max_steps` together with `epochs`,
    `new_per_step` and `sub_steps`: see `adapters.schedule`, with a worked table.
    """

    learning_rate: float | None = Field(default=None, gt=0.0)
    """None: `reference_rate` · 192 / hidden size, which is 3.8e-4 at a width of 4,096."""
    reference_rate: float = Field(default=0.008, gt=0.0)
    """The learning rate at a width of 192."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    warmup: int = Field(default=6, ge=0)
    """Steps of linear warm-up; the rate then falls linearly to 0."""
    scaling: float | None = Field(default=None, gt=0.0)
    """ΔW = scaling · B A; None: 4 / √rank, so that a step moves ΔW alike at any rank
    (Kalajdzievski, arXiv 2312.03732)."""
    clip: float = Field(default=1.0, gt=0.0)
    """Largest gradient norm."""

    steps: int | None = Field(default=None, ge=1)
    """A fixed number of steps; None: as many as the facts need, by the next seven."""
    min_steps: int = Field(default=60, ge=1)
    """Steps of any run, …"""
    steps_per_fact: int = Field(default=4, ge=0)
    """… plus so many for each fact, new or replayed, …"""
    base_steps: int = Field(default=150, ge=1)
    """… up to this number, unless `epochs` needs more."""
    large_run_facts: int = Field(default=144, ge=1)
    """New or replayed facts from which on a run takes longer: each is replayed less often, or there
    are more to keep apart."""
    steps_per_doubling: float = Field(default=1.5, ge=0.0)
    """Share of the steps that each doubling beyond `large_run_facts` adds."""
    max_steps: int = Field(default=2000, ge=1)
    new_per_step: int = Field(default=12, ge=1)
    """New facts in a step; of many, at most twice as many (`schedule.facts_in_step`)."""
    sub_steps: int = Field(default=3, ge=1)
    """Steps that together go through a usual batch once; 1: each step takes all of it. KL terms
    weigh against the facts of all `sub_steps` as they would in one step."""
    stop_loss: float | None = Field(default=0.02, gt=0.0)
    """End early once the latest loss per token of every new fact, and the mean of the replayed
    ones, is below; None: never."""
    earliest_end: float = Field(default=0.2, gt=0.0, le=1.0)
    """The share of the steps before which a run does not end early."""
    cooldown: int = Field(default=12, ge=1)
    """Steps in which the rate falls to 0 after an early end was decided."""

    replayed_per_step: int = Field(default=24, ge=0)
    """Earlier facts replayed in a step, at most half of them."""
    known_per_step: int = Field(default=32, ge=0)
    """Texts of known facts in a step."""
    reasoning_per_step: int = Field(default=4, ge=0)
    """Reasoning traces in a step, at most an eightieth of the pool (a small pool overfits)."""
    min_traces: int = Field(default=0, ge=0)
    """Reasoning traces to replay at least: the base writes the missing ones (`synthesis`)."""
    kl_weight: float = Field(default=7.0, ge=0.0)
    """Weight of KL(base ‖ model) on known facts, a mean over their tokens; 0: known facts and
    reasoning are learnt from their labels, like the new facts."""
    kl_weight_reasoning: float = Field(default=7.0, ge=0.0)
    """The same on reasoning traces."""
    kl_decay_facts: int = Field(default=10, ge=1)
    """New and replayed facts from which on both KL weights fall, as kl_decay_facts / facts, down to
    the share for the new facts of `sub_steps` steps: the facts' loss is a mean, so each of many
    facts alone would weigh too little against the KL terms."""
    entropy_weight: float = Field(default=2.0, ge=0.0)
    """Reasoning traces are drawn in proportion to 1 + entropy_weight · entropy / mean entropy of
    the base's predictions; 0: all alike."""
    temperature: float = Field(default=4.0, gt=0.0)
    """Of both distributions in the KL terms: above 1, tokens of which the base is sure have a
    gradient before they are lost."""

    max_length: int = Field(default=1024, ge=8)
    """Longest text, in tokens."""
    max_tokens: int | None = Field(default=None, ge=8)
    """Tokens in one forward pass, a row of packed texts; None: 4,096, on a CPU 512, where longer
    rows took longer. Halved when the device's memory is too small."""
    checkpoint_s: float = Field(default=20.0, ge=0.0)
    """Seconds between checkpoints."""
    targets: tuple[str, ...] = MLP
    """Matrices of each layer that are trained."""
    orthogonal: bool = False
    """Whether an adapter on top of others reads no input direction that they read: its A is
    orthogonal to theirs."""

    def resolved(self, device: str, facts: int) -> TrainConfig:
        """With the batch preset decided for `facts` new facts on a device ("cpu" or "cuda").

        Small steps pay where time grows with the text, as on a CPU; on a GPU a small step of a
        small model takes as long as a large one. Of many facts a CPU too takes the large preset,
        which needs less than half of the steps and replays twice as much.
        """
        if self.batch_preset == "auto":
            large = device != "cpu" or facts > self.large_run_facts
        else:
            large = self.batch_preset == "large"
        if large:
            return self.large_batch()
        return self.model_copy(update={"batch_preset": "small"})

    def large_batch(self) -> TrainConfig:
        """At the large preset: the new facts of all `sub_steps` in one step, with twice as much
        replay, and somewhat more steps.
        """
        large = self.model_copy(update={"batch_preset": "large"})
        if self.sub_steps == 1:
            return large
        replayed = ("replayed_per_step", "known_per_step", "reasoning_per_step")
        texts = {name: 2 * self.sub_steps * getattr(self, name) for name in replayed}
        steps = round(1.5 * self.base_steps / self.sub_steps**0.2)
        new = self.sub_steps * self.new_per_step
        changed = {**texts, "new_per_step": new, "base_steps": steps, "sub_steps": 1}
        return large.model_copy(update=changed)

    def scale(self, rank: int) -> float:
        """The scaling of an adapter of this rank."""
        return 4 / math.sqrt(rank) if self.scaling is None else self.scaling


STACKED: Final = TrainConfig(
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
"""For adapters on top of each other. A stack is short: regularised as hard as a warm-started
adapter, the one that consolidates it learns too little."""

PALORA: Final = STACKED.model_copy(
    update={
        "reference_rate": 0.003,
        "base_steps": 150,
        "replayed_per_step": 0,
        "known_per_step": 0,
        "reasoning_per_step": 0,
        "kl_weight": 0.0,
        "kl_weight_reasoning": 0.0,
        "orthogonal": True,
    }
)
"""As the paper describes PALoRA (arXiv 2605.24549): nothing but what is protected, and that each
adapter is orthogonal to the earlier ones, keeps what the model knows. Rate and steps are those with
which it did best in the learning bench."""
