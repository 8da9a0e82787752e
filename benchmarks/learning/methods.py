"""Methods to learn a batch, as small plug-ins over the product's trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from adapters.config import STACKED, TrainConfig
from adapters.plans import TrainPlan, TrainReport
from adapters.probe import Protection
from adapters.recipe import Recipe
from benchmarks.learning.batches import FEW
from benchmarks.learning.edits import alphaedit
from benchmarks.learning.inputs import ProtectedInputs
from benchmarks.learning.judge import Context
from benchmarks.learning.recipes import (
    CorDA,
    Initialised,
    InputsOnly,
    MiLoRA,
    MuonSteps,
    NormBound,
    OLoRA,
    Relieved,
)
from benchmarks.learning.scores import (
    SVF,
    Components,
    at_random,
    fisher,
    half,
    largest,
    passed_energy,
    relative_change,
)
from daemon.config.training import ReplaySettings, TrainSettings

NOTHING: Final = Protection(kind="none")
# Of one injection baselines keep what they were tuned with, among it more steps than the product.
IN_A_STACK: Final = STACKED.model_dump(exclude_unset=True)
LONG: Final = {**IN_A_STACK, "base_steps": 150}
# What a step of the product replays, switched off.
ALONE: Final = {
    **LONG,
    "replayed_per_step": 0,
    "known_per_step": 0,
    "reasoning_per_step": 0,
    "kl_weight": 0.0,
}
# The same shares as the product's, learnt from their labels.
LABELS: Final = {**LONG, "kl_weight": 0.0}
# The product's.
PARAPHRASES: Final = TrainSettings().paraphrases
RETRAIN_AT: Final = TrainSettings().retrain_at
# With which the rows were made. The product may end sooner, which only real models do: palorad-mini
# has not learnt a batch before a half of its steps.
EARLIEST_END: Final = 0.5
# The product at its two batch presets: small as on a CPU, large as on a GPU.
SMALL_BATCH: Final[dict[str, Any]] = {"min_traces": ReplaySettings().min_traces}
SMALL_CONFIG: Final = TrainConfig(**SMALL_BATCH)
LARGE_BATCH: Final = {
    **SMALL_BATCH,
    **{
        n: v
        for n, v in SMALL_CONFIG.large_batch().model_dump().items()
        if v != getattr(SMALL_CONFIG, n)
    },
}
# The text of three steps of the small preset in one.
THREE_IN_ONE: Final = {
    "sub_steps": 1,
    "base_steps": 120,
    **{
        name: 3 * getattr(SMALL_CONFIG, name)
        for name in ("new_per_step", "replayed_per_step", "known_per_step", "reasoning_per_step")
    },
}
# Higher than the others': as for the product the scaling of ΔW is smaller.
WARM_START_RATES: Final = (0.003, 0.006, 0.012)


@dataclass(frozen=True)
class Method:
    """A method: what it protects, its training config, and its recipe.

    `rates` are the learning rates among which it may choose on selection seeds.
    """

    description: str
    protection: Protection = NOTHING
    settings: Mapping[str, Any] = field(default_factory=dict)
    recipe: Callable[[], Recipe] = Recipe
    """Where its set-up or step differs from the product's; a new one for each run."""
    rates: tuple[float, ...] = (0.0015, 0.003, 0.006)
    learns: bool = True
    context: Context = "none"
    """Which sentence is put before a question in the prompt."""
    lineage: Literal["warm-start", "stack", "from-scratch"] = "stack"
    """What learns the next batch: the present adapter, a new one on top of the earlier ones, or a
    new one that learns all batches from scratch."""
    calibrates: bool = False
    """Whether it reads known facts and reasoning though it replays nothing."""
    paraphrases: int = FEW
    """Paraphrases that are trained for each fact, at most."""
    prefixed: bool = False
    """Whether half of the paraphrases are prefixed (`train.prefixed`)."""
    retrain_at: int = 0
    """Facts from which on a warm-started adapter is retrained from scratch (`train.retrain_at`);
    0: never."""
    auto_batch: bool = False
    """Whether a run of many facts takes the large preset (`train.batch_preset = "auto"` on a CPU).
    """
    rank: int | None = None
    """Rank of each adapter; None: the product's with a warm start, else by the number of facts."""
    edit: Callable[[TrainPlan, Path], TrainReport] | None = None
    """Replaces the trainer."""

    def config(self, rate: float | None) -> TrainConfig:
        """How it is trained, at this learning rate if it has one."""
        preset = "auto" if self.auto_batch else "small"
        usual = {"batch_preset": preset, "earliest_end": EARLIEST_END}
        return TrainConfig(**{**usual, **self.settings, "learning_rate": rate})

    @property
    def replays(self) -> bool:
        """Whether earlier facts are given to the trainer at all."""
        return self.settings.get("replayed_per_step") != 0


METHODS: Final[Mapping[str, Method]] = {
    "frozen": Method("the base, no update", NOTHING, LONG, rates=(), learns=False),
    "oracle context": Method(
        "the base, the right fact in the prompt",
        NOTHING,
        LONG,
        rates=(),
        learns=False,
        context="oracle",
    ),
    "retrieval": Method(
        "the base, the fact that BM25 finds in the prompt",
        NOTHING,
        LONG,
        rates=(),
        learns=False,
        context="retrieved",
    ),
    "plain LoRA": Method("LoRA on the new facts alone", settings=ALONE),
    "weight decay": Method(
        "plain LoRA with weight decay 0.3", settings={**ALONE, "weight_decay": 0.3}
    ),
    "norm bound": Method(
        "plain LoRA with ‖ΔW‖ bounded at 25",
        settings=ALONE,
        recipe=partial(NormBound, 25.0),
    ),
    "O-LoRA": Method(
        "plain LoRA, inputs orthogonal to earlier adapters' by a penalty (O-LoRA)",
        NOTHING,
        ALONE,
        OLoRA,
    ),
    "palora": Method("the paper's: critical SVF components protected, both sides", SVF, ALONE),
    "palora, inputs": Method("palora on the input side alone", SVF, ALONE, InputsOnly),
    "random": Method(
        "as many components drawn at random", SVF, ALONE, partial(Components, at_random)
    ),
    "palora, by change": Method(
        "as many, by |δ| instead of σ²δ²", SVF, ALONE, partial(Components, relative_change)
    ),
    "palora, by energy": Method(
        "as many, by the energy of what passes through them",
        SVF,
        ALONE,
        partial(Components, passed_energy),
    ),
    "palora, by Fisher": Method(
        "as many, by the Fisher information of δ",
        SVF,
        ALONE,
        partial(Components, fisher),
        calibrates=True,
    ),
    "OPLoRA": Method(
        "as many of the largest components (OPLoRA)", SVF, ALONE, partial(Components, largest)
    ),
    "MiLoRA": Method("the smallest components trained (MiLoRA)", NOTHING, ALONE, MiLoRA),
    "PiSSA": Method(
        "the largest components trained (PEFT's PiSSA)",
        NOTHING,
        ALONE,
        partial(Relieved, init_lora_weights="pissa"),
    ),
    "MiCA": Method(
        "into the smallest left vectors (PEFT's MiCA)",
        NOTHING,
        ALONE,
        partial(Initialised, init_lora_weights="mica"),
    ),
    "CorDA": Method(
        "the components least used by known facts and reasoning trained (PEFT's CorDA-KPM)",
        settings=ALONE,
        recipe=CorDA,
        calibrates=True,
    ),
    "OSF": Method(
        "all of the smaller half of the components (OSF's space)",
        SVF,
        ALONE,
        partial(Components, largest, half),
        rank=128,
    ),
    "AlphaEdit": Method(
        "closed form in the null space of known facts and reasoning (AlphaEdit)",
        settings=ALONE,
        rates=(0.5, 1.0, 2.0),
        calibrates=True,
        edit=alphaedit,
    ),
    "null space": Method(
        "70 % of the skill's input directions protected", Protection(share=0.7), ALONE
    ),
    "null space, known facts too": Method(
        "70 % of the input directions of the skill and of known facts protected",
        settings=ALONE,
        recipe=partial(ProtectedInputs, 0.7),
        calibrates=True,
    ),
    "null space, soft": Method("λ(C+λI)⁻¹ of the skill's inputs", Protection(form="soft"), ALONE),
    "replay": Method("facts, known facts and reasoning replayed by label", settings=LABELS),
    "null space + replay": Method(
        "replay by label in the null space of 70 %", Protection(share=0.7), LABELS
    ),
    "replay, KL": Method("replay KL-regularised to the base, nothing protected", settings=LONG),
    "palorad": Method(
        "the product: warm start, replay KL-regularised to the base, 20 % protected",
        Protection(),
        LARGE_BATCH,
        rates=(),
        lineage="warm-start",
        paraphrases=PARAPHRASES,
        retrain_at=RETRAIN_AT,
    ),
    "palorad, small batch": Method(
        "the product with a sixth of the text, but for many facts at once, as on a CPU",
        Protection(),
        SMALL_BATCH,
        rates=(),
        lineage="warm-start",
        paraphrases=PARAPHRASES,
        retrain_at=RETRAIN_AT,
        auto_batch=True,
    ),
    "warm start": Method(
        "the product, never retrained from scratch",
        Protection(),
        LARGE_BATCH,
        rates=(),
        lineage="warm-start",
        paraphrases=PARAPHRASES,
    ),
    "warm start, small batch": Method(
        "the product with a sixth of the text, never retrained from scratch",
        Protection(),
        SMALL_BATCH,
        rates=(),
        lineage="warm-start",
        paraphrases=PARAPHRASES,
    ),
    "palorad, known facts protected": Method(
        "small batch, 20 % of the input directions of the skill and of known facts protected",
        settings=SMALL_BATCH,
        recipe=partial(ProtectedInputs, 0.2),
        rates=(),
        lineage="warm-start",
        paraphrases=PARAPHRASES,
    ),
    "palorad, prefixed": Method(
        "small batch, half of the paraphrases prefixed",
        Protection(),
        SMALL_BATCH,
        rates=(),
        lineage="warm-start",
        paraphrases=PARAPHRASES,
        prefixed=True,
    ),
    "palorad, Muon": Method(
        "small batch, Muon instead of AdamW",
        Protection(),
        SMALL_BATCH,
        MuonSteps,
        rates=(),
        lineage="warm-start",
        paraphrases=PARAPHRASES,
    ),
    "replay, warm start": Method(
        "replay by label in the product's shares, warm start",
        settings={**THREE_IN_ONE, "kl_weight": 0.0},
        rates=WARM_START_RATES,
        lineage="warm-start",
        paraphrases=PARAPHRASES,
    ),
    "null space + replay, warm start": Method(
        "the same in the null space of 70 %, which leaves room for half the rank",
        Protection(share=0.7),
        {**THREE_IN_ONE, "kl_weight": 0.0},
        rates=WARM_START_RATES,
        lineage="warm-start",
        paraphrases=PARAPHRASES,
        rank=64,
    ),
    "stack": Method(
        "the product's stack, each adapter on top of the earlier ones", Protection(), IN_A_STACK
    ),
    "retrained from scratch": Method(
        "the product, all facts learnt from scratch by one adapter wherever it is measured",
        Protection(),
        LARGE_BATCH,
        rates=(),
        lineage="from-scratch",
        paraphrases=PARAPHRASES,
    ),
}
