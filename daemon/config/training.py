"""[train]: how adapters are trained, when, and what is replayed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from adapters.config import PALORA, STACKED, AdapterChoices, TrainConfig
from daemon.config.cluster import RaySettings
from daemon.config.sections import Cron, OptionalPath, Section
from policies.lineage import Lineage

Method = Literal["palorad", "palora"]
OF_PALORA: Final = {"lineage": "stack", "max_replay": 0}


class ReplaySettings(Section):
    """[train.replay]: text replayed beside the new facts."""

    known: OptionalPath = Path("models/palorad-mini/data/known-replay.jsonl")
    """Lines with `prompt` and `answer` that the base knows; "" for none."""
    reasoning: OptionalPath = Path("models/palorad-mini/data/reasoning-replay.jsonl")
    """Lines with `prompt` and `solution`: reasoning traces of the skill; "" for none."""
    min_traces: int = Field(default=1000, ge=0)
    """How many reasoning traces there are at least: if fewer are given, the base writes the rest.
    It continues the beginnings of the given ones or, if none is given, an empty conversation. 0: it
    writes none. Not in a stack."""


class TrainSettings(AdapterChoices, Section):
    """[train]: how adapters are trained, when, and how many may stand on each other."""

    method: Method = "palorad"
    """The method as a whole. "palorad": one adapter that is trained further and replays what it
    knows, beside protected activations. "palora": [as the
    paper](probe.md#the-papers-own-method) describes it: critical SVF components protected on
    both sides, each adapter orthogonal to the earlier ones in a stack, nothing replayed. Decides
    about train.lineage, train.max_replay and protection.kind where these are unset."""

    processes: int = Field(default=1, ge=1)
    """How many processes share the texts of each step: as many as there are GPUs, at most, or cores
    without a GPU. Each has a GPU of its own with the whole base. The adapter is the same with any
    number, up to rounding, and any number goes on from a checkpoint of another."""

    rank: int = Field(default=16, ge=1)
    """Only in a stack: the rank of one adapter, at most; one that learns few facts gets less."""
    rank_budget: int = Field(default=128, ge=1)
    """The rank of a warm-started adapter; at most server.max_lora_rank. In a stack: the sum of all
    ranks, beyond which one adapter is retrained from scratch in place of all."""
    lineage: Lineage = "warm-start"
    """What a plan trains. "warm-start": a copy of the served adapter, which replays what it knows.
    "stack": a new adapter on top of the earlier ones, which stay as they are. Unset: as the method
    says."""
    paraphrases: int = Field(default=200, ge=1, le=1000)
    """A fact is trained in up to this many paraphrases: those that it was stored with (see
    intake.min_paraphrases) and further ones from intake.paraphrase_source. Their number does not
    change the time of a step."""
    prefixed: bool = False
    """Whether half of the paraphrases from templates are prefixed ("For a quiz: …"): higher
    accuracy on out-of-distribution paraphrases, lower locality."""
    retrain_at: int = Field(default=480, ge=0)
    """An adapter that knows at least this many facts, and twice as many as when it was last trained
    from scratch, is retrained from scratch on all valid facts as soon as nothing waits. Each warm
    start loses some locality; one run over all facts loses less. The gate judges the result like
    any other. 0: never. Not in a stack."""
    max_facts: int = Field(default=500, ge=1)
    """Facts in one plan, at most; a larger batch becomes several plans."""
    min_facts: int = Field(default=1, ge=1)
    """A plan is made once so many facts wait, or the oldest has waited for max_wait_s. Urgent facts
    do not wait."""
    max_wait_s: float = Field(default=0, ge=0)
    """How long facts may wait while they are fewer than min_facts."""
    quiet_hours: tuple[Cron, ...] = ()
    """Cron expressions in UTC, such as "* 8-17 * * mon-fri": while one matches, only urgent facts
    and retractions are trained."""
    max_replay: int = Field(default=2000, ge=0)
    """Earlier facts that one plan replays, at most: an even sample of all."""
    relearn: int = Field(default=2, ge=0)
    """How often facts that the gate found not learnt are planned again."""
    seed: int = 0
    """Seed of the first plan with some facts; each further try of these facts adds one."""
    deadline_s: float = Field(default=3600, gt=0)
    """How long one stage of a plan (probe, train or evaluate) may go without any progress. A child
    that stands still for longer is killed, and the stage counts as failed."""
    attempts: int = Field(default=3, ge=1)
    """How often the stages of a plan may fail, all together, before the plan fails."""
    backoff_s: float = Field(default=5.0, ge=0)
    """The pause after a plan's first failure; it doubles with each further one."""
    launcher: Literal["local", "ray"] = "local"
    """Where adapters are trained: on the daemon's host, or on a [Ray
    cluster](decisions/0013-attempts-on-a-cluster.md). An evaluation goes there too, unless
    server.urls or gate.judge.url is a loopback address, which no other host reaches."""
    replay: ReplaySettings = ReplaySettings()
    """[train.replay]"""
    ray: RaySettings = RaySettings()
    """[train.ray]"""

    @property
    def config(self) -> TrainConfig:
        """How each adapter is trained, by these settings."""
        chosen = {name: getattr(self, name) for name in AdapterChoices.model_fields}
        if self.method == "palora":
            return PALORA.model_copy(update={**chosen, "epochs": PALORA.epochs})
        if self.lineage == "stack":
            return STACKED.model_copy(update={**chosen, "epochs": STACKED.epochs})
        return TrainConfig(**chosen, min_traces=self.replay.min_traces)

    @model_validator(mode="before")
    @classmethod
    def _as_the_method_says(cls, given: object) -> object:
        if not isinstance(given, Mapping) or given.get("method") != "palora":
            return given
        for key, value in OF_PALORA.items():
            if given.get(key, value) != value:
                raise ValueError(
                    f'train.method "palora" has train.{key} = {json.dumps(value)}: remove '
                    f"train.{key}, or choose another method"
                )
        return {**given, **OF_PALORA}

    @model_validator(mode="after")
    def _gathers(self) -> Self:
        if self.min_facts > self.max_facts:
            raise ValueError("train.min_facts is larger than train.max_facts")
        return self
