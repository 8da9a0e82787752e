"""[train]: how adapters are trained, when, and what is replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from adapters.config import STACKED, AdapterChoices, TrainConfig
from daemon.config.sections import Cron, OptionalPath, Section
from policies.lineage import Lineage


class ReplaySettings(Section):
    """[train.replay]: text replayed beside the new facts."""

    known: OptionalPath = Path("models/palorad-mini/data/known-replay.jsonl")
    """Lines with `prompt` and `answer` that the base knows; "" for none."""
    reasoning: OptionalPath = Path("models/palorad-mini/data/reasoning-replay.jsonl")
    """Lines with `prompt` and `solution`: reasoning traces of the skill; "" for none."""
    min_traces: int = Field(default=1000, ge=0)
    """Where fewer reasoning traces than these are given, the base writes the others: it continues
    the beginnings of those that are given, or of none. 0: it writes none. Not in a stack."""


class TrainSettings(AdapterChoices, Section):
    """[train]: how adapters are trained, when, and how many may stand on each other."""

    rank: int = Field(default=16, ge=1)
    """In a stack: rank of one adapter; less where it learns fewer facts than that."""
    rank_budget: int = Field(default=128, ge=1)
    """Rank of a warm-started adapter. In a stack: sum of all ranks; beyond it, one adapter is
    retrained and replaces them."""
    lineage: Lineage = "warm-start"
    """What learns the next batch. "warm-start": a copy of the adapter that is served, which replays
    all that it knows. "stack": a new one on top of the earlier ones, which stay as they are."""
    paraphrases: int = Field(default=200, ge=1, le=1000)
    """A fact is trained in up to this many paraphrases, from intake.paraphrase_source; their number
    does not change the time of a step."""
    prefixed: bool = False
    """Whether half of the template paraphrases are prefixed ("For a quiz: …"): higher accuracy on
    out-of-distribution paraphrases, slightly lower locality."""
    retrain_at: int = Field(default=480, ge=0)
    """A warm-started adapter that knows at least this many facts, and twice those it was last
    trained on from scratch, is retrained from scratch on all of them as soon as nothing waits: each
    warm start loses some locality, one run over all facts less. The gate judges the result like
    any other. 0: never. Not in a stack."""
    max_facts: int = Field(default=500, ge=1)
    """Facts in one plan; a larger batch becomes several plans."""
    min_facts: int = Field(default=1, ge=1)
    """Fewer waiting facts wait for more, at most for max_wait_s; urgent facts never wait."""
    max_wait_s: float = Field(default=0, ge=0)
    """How long the oldest of too few facts may wait."""
    quiet_hours: tuple[Cron, ...] = ()
    """Cron expressions in UTC, such as "* 8-17 * * mon-fri": while one matches, only urgent facts
    and retractions are trained."""
    max_replay: int = Field(default=2000, ge=0)
    """Earlier facts that one plan replays; of more, an even sample."""
    relearn: int = Field(default=2, ge=0)
    """How often facts that the gate found not learnt are planned again."""
    seed: int = 0
    """Seed of the first plan of a batch; each further try adds one."""
    deadline_s: float = Field(default=3600, gt=0)
    """A child that takes longer is killed and counted as failed."""
    attempts: int = Field(default=3, ge=1)
    """How often a step may fail before its plan fails."""
    backoff_s: float = Field(default=5.0, ge=0)
    """Pause after a step's first failure; it doubles with each further one."""
    replay: ReplaySettings = ReplaySettings()
    """[train.replay]"""

    @property
    def config(self) -> TrainConfig:
        """How each adapter is trained, by these settings."""
        chosen = {name: getattr(self, name) for name in AdapterChoices.model_fields}
        if self.lineage == "stack":
            return STACKED.model_copy(update={**chosen, "epochs": STACKED.epochs})
        return TrainConfig(**chosen, min_traces=self.replay.min_traces)

    @model_validator(mode="after")
    def _gathers(self) -> Self:
        if self.min_facts > self.max_facts:
            raise ValueError("train.min_facts is larger than train.max_facts")
        return self
