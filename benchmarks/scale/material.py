"""What a step on the real model reads: 36 facts answered in sentences, and its own replay."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from adapters.config import TrainConfig
from adapters.models import base_hash
from adapters.plans import TrainPlan
from adapters.probe_fit import ProbeConfig, fit_probe
from benchmarks.learning.batches import batch
from daemon.config.paraphrases import paraphrase_policy
from daemon.config.sections import IntakeSettings
from daemon.config.training import TrainSettings
from daemon.training.child import read_examples
from policies.facts.templates import relations
from policies.records import Fact, PlanKind
from smol.checkpoint import FOLDER

FACTS: Final = 36
RUNS: Final = Path("benchmarks/runs/scale")


def facts() -> tuple[Fact, ...]:
    """Facts of four relations in the product's paraphrases, each answered in a sentence, as the
    model itself answers."""
    policy, made = paraphrase_policy(IntakeSettings()), []
    for fact in batch(1, FACTS, 1, "report").facts:
        said = relations()[str(fact.relation)].states(str(fact.subject), fact.answer)[0]
        made.append(policy.for_training(fact.model_copy(update={"answer": said})))
    return tuple(made)


def plan(config: TrainConfig) -> TrainPlan:
    """A plan of the product on the real model; its probe is fitted once, in a minute."""
    data = FOLDER / "data"
    traces = tuple(read_examples(data / "skill.jsonl", "solution"))
    fit_probe(FOLDER, traces, RUNS / "probe", ProbeConfig(seeds=()))
    return TrainPlan(
        kind=PlanKind.LEARN,
        rank=TrainSettings().rank_budget,
        seed=0,
        model_dir=FOLDER,
        base_hash=base_hash(FOLDER),
        base_name=FOLDER.name,
        facts=facts(),
        known=tuple(read_examples(data / "known-replay.jsonl", "answer")),
        reasoning=traces,
        probe_dir=RUNS / "probe",
        config=config,
    )
