"""Methods to learn a batch, as small plug-ins over the product's trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import torch
from peft import LoraConfig
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import Tensor, nn

from adapters import compose, lora, models, plans, projection
from adapters.attach import NEW, extract
from adapters.plans import STACKED, TrainPlan, TrainReport
from adapters.probe import Protection
from adapters.projection import Protected
from adapters.replay import encode_pools
from adapters.subspace import empty
from adapters.trainer import PRODUCT, Hooks, protect
from benchmarks.learning.batches import FEW
from benchmarks.learning.edits import alphaedit
from benchmarks.learning.inputs import protected_inputs
from benchmarks.learning.judge import Context
from benchmarks.learning.scores import (
    CALIBRATION,
    SVF,
    at_random,
    components,
    fisher,
    half,
    largest,
    passed_energy,
    relative_change,
)
from daemon.config.sections import ReplaySettings, TrainSettings

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
# The product at its two batch presets: small as on a CPU, large as on a GPU.
SMALL_BATCH: Final[dict[str, Any]] = {"min_traces": ReplaySettings().min_traces}
SMALL_CONFIG: Final = plans.TrainSettings(**SMALL_BATCH)
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
    """A method: what it protects, how its trainer is set, and the hooks where it differs.

    `rates` are the learning rates among which it may choose on selection seeds.
    """

    description: str
    protection: Protection = NOTHING
    settings: Mapping[str, Any] = field(default_factory=dict)
    hooks: Hooks = PRODUCT
    rates: tuple[float, ...] = (0.0015, 0.003, 0.006)
    learns: bool = True
    context: Context = "none"
    """Which sentence is put before a question in the prompt."""
    lineage: Literal["warm-start", "stack", "from-scratch"] = "stack"
    """What learns the next batch: the present adapter, a new one on top of the earlier ones, or a
    new one that learns all batches from scratch."""
    orthogonal_inputs: bool = False
    """Whether overlap of an adapter's inputs with earlier ones' is penalised (O-LoRA)."""
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
    """Whether a run of many facts takes the large batch (`train.batch_preset = "auto"` on a CPU).
    """
    rank: int | None = None
    """Rank of each adapter; None: the product's with a warm start, else by the number of facts."""
    edit: Callable[[TrainPlan, Path], TrainReport] | None = None
    """Replaces the trainer."""

    @property
    def replays(self) -> bool:
        """Whether earlier facts are given to the trainer at all."""
        return self.settings.get("replayed_per_step") != 0

    def hooks_for(self, plan: TrainPlan) -> Hooks:
        """The hooks for one plan."""
        if not (self.orthogonal_inputs and plan.lineage):
            return self.hooks
        return replace(self.hooks, extra_loss=_away_from(plan))


def _inputs_only(base: nn.Module, plan: TrainPlan) -> Mapping[str, Protected]:
    found = protect(base, plan)
    return {
        name: Protected(guard.inputs, empty(guard.outputs.shape[0]), guard.soft)
        for name, guard in found.items()
    }


def _minor(model: nn.Module) -> None:
    """MiLoRA (arXiv 2406.09044): begin with the smallest singular components, out of the base."""
    for layer in projection.lora_layers(model, NEW).values():
        down, up = layer.lora_A[NEW].weight, layer.lora_B[NEW].weight
        base, scaling, rank = layer.get_base_layer().weight, layer.scaling[NEW], down.shape[0]
        left, sigma, right = torch.linalg.svd(base.detach().float(), full_matrices=False)
        root = (sigma[-rank:] / scaling).sqrt()
        down.data.copy_(root[:, None] * right[-rank:])
        up.data.copy_(left[:, -rank:] * root)
        base.data -= (scaling * up.data @ down.data).to(base.dtype)


def _away_from(plan: TrainPlan) -> Callable[[nn.Module, int], Tensor]:
    """O-LoRA (arXiv 2310.14152): 0.5 · Σ|A_new A_earlierᵀ| over all matrices."""
    earlier = compose.concatenate([lora.read(path) for path in plan.lineage]).factors

    def loss(model: nn.Module, _step: int) -> Tensor:
        layers = projection.lora_layers(model, NEW)
        overlaps = [
            (layer.lora_A[NEW].weight @ earlier[name][0].to(layer.lora_A[NEW].weight).mT).abs()
            for name, layer in layers.items()
            if name in earlier
        ]
        return 0.5 * torch.stack([overlap.sum() for overlap in overlaps]).sum()

    return loss


def _corda(base: nn.Module, plan: TrainPlan) -> Mapping[str, Protected]:
    """CorDA (arXiv 2406.05223) looks at the inputs of what is to stay, one text at a time."""
    pools = encode_pools(plan, models.load_tokenizer(plan.model_dir))
    texts = [paraphrases[0] for paraphrases in (*pools.known, *pools.reasoning)]
    config = LoraConfig(r=plan.rank, target_modules=list(plan.settings.targets), **CORDA_KPM)

    def look() -> None:
        for text in texts[:: max(1, len(texts) // CALIBRATION)]:
            base(torch.tensor([text.ids]))

    preprocess_corda(base, config, look)
    return {}


def _at_most(norm: float) -> Callable[[nn.Module, int], None]:
    """After each step ‖ΔW‖ over all matrices is brought back to `norm`."""

    @torch.no_grad()
    def shrink(model: nn.Module, _step: int) -> None:
        share = norm / max(extract(model).norm(), norm)
        for layer in projection.lora_layers(model, NEW).values():
            layer.lora_B[NEW].weight.mul_(share)

    return shrink


CORDA_KPM: Final[dict[str, Any]] = {
    "init_lora_weights": "corda",
    "corda_config": CordaConfig(corda_method="kpm"),
}
MILORA: Final = Hooks(start=_minor, relieved=True)
PISSA: Final = Hooks(config={"init_lora_weights": "pissa"}, relieved=True)
MICA: Final = Hooks(config={"init_lora_weights": "mica"})

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
        hooks=Hooks(after_step=_at_most(25.0)),
    ),
    "O-LoRA": Method(
        "plain LoRA, inputs orthogonal to earlier adapters' by a penalty (O-LoRA)",
        NOTHING,
        ALONE,
        orthogonal_inputs=True,
    ),
    "palora": Method("the paper's: critical SVF components protected, both sides", SVF, ALONE),
    "palora, inputs": Method(
        "palora on the input side alone", SVF, ALONE, Hooks(protect=_inputs_only)
    ),
    "random": Method("as many components drawn at random", SVF, ALONE, components(at_random)),
    "palora, by change": Method(
        "as many, by |δ| instead of σ²δ²", SVF, ALONE, components(relative_change)
    ),
    "palora, by energy": Method(
        "as many, by the energy of what passes through them", SVF, ALONE, components(passed_energy)
    ),
    "palora, by Fisher": Method(
        "as many, by the Fisher information of δ", SVF, ALONE, components(fisher), calibrates=True
    ),
    "OPLoRA": Method("as many of the largest components (OPLoRA)", SVF, ALONE, components(largest)),
    "MiLoRA": Method("the smallest components trained (MiLoRA)", NOTHING, ALONE, MILORA),
    "PiSSA": Method("the largest components trained (PEFT's PiSSA)", NOTHING, ALONE, PISSA),
    "MiCA": Method("into the smallest left vectors (PEFT's MiCA)", NOTHING, ALONE, MICA),
    "CorDA": Method(
        "the components least used by known facts and reasoning trained (PEFT's CorDA-KPM)",
        settings=ALONE,
        hooks=Hooks(protect=_corda, config=CORDA_KPM, relieved=True),
        calibrates=True,
    ),
    "OSF": Method(
        "all of the smaller half of the components (OSF's space)",
        SVF,
        ALONE,
        components(largest, half),
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
        hooks=protected_inputs(0.7),
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
        hooks=protected_inputs(0.2),
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
        {**SMALL_BATCH, "optimizer": "muon"},
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
