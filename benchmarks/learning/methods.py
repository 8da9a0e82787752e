"""Ways to learn a batch, as small plug-ins over the product's trainer."""

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
from adapters.trainer import PRODUCT, Method, protect
from benchmarks.learning.batches import FEW
from benchmarks.learning.edits import alphaedit
from benchmarks.learning.inputs import spared
from benchmarks.learning.judge import Told
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
# Of one injection peers keep what they were tuned with, more steps than the product among it.
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
# The product's paraphrases of a fact.
MANY: Final = TrainSettings().paraphrases
RENEW: Final = TrainSettings().retrain_at
# The product at full batch_preset, as on a GPU; without these it is quick, as on a CPU.
QUICK: Final[dict[str, Any]] = {"min_traces": ReplaySettings().min_traces}
SMALL: Final = plans.TrainSettings(**QUICK)
FULL: Final = {
    **QUICK,
    **{n: v for n, v in SMALL.large_batch().model_dump().items() if v != getattr(SMALL, n)},
}
# The text of a usual batch's steps at quick batch_preset, three of them in one.
THREE_IN_ONE: Final = {
    "sub_steps": 1,
    "base_steps": 120,
    **{
        name: 3 * getattr(SMALL, name)
        for name in ("new_per_step", "replayed_per_step", "known_per_step", "reasoning_per_step")
    },
}
# As for the product, whose scaling of ΔW is smaller than theirs.
ONWARD_RATES: Final = (0.003, 0.006, 0.012)


@dataclass(frozen=True)
class Way:
    """A method: what it protects, how its trainer is set, and the hooks where it differs.

    `rates` are the learning rates among which it may choose on selection seeds.
    """

    says: str
    protection: Protection = NOTHING
    settings: Mapping[str, Any] = field(default_factory=dict)
    hooks: Method = PRODUCT
    rates: tuple[float, ...] = (0.0015, 0.003, 0.006)
    learns: bool = True
    told: Told = "nothing"
    """What stands in front of a question."""
    lineage: Literal["warm-start", "stack", "afresh"] = "stack"
    """What learns the next batch: the adapter that there is, a fresh one on top of the earlier
    ones, or a fresh one that learns everything anew."""
    apart: bool = False
    """Whether an adapter's inputs are pushed away from those of earlier ones (O-LoRA)."""
    calibrates: bool = False
    """Whether known facts and reasoning are given to it though it replays nothing."""
    paraphrases: int = FEW
    """In how many paraphrases a fact is learnt, at most."""
    prefixed: bool = False
    """Whether half of the paraphrases stand in a frame (`train.prefixed`)."""
    retrain_at: int = 0
    """From how many facts on an adapter that goes on is retrained from scratch
    (`train.retrain_at`); 0: never."""
    by_need: bool = False
    """Whether a run of many facts is at full effort (`train.batch_preset` on a CPU)."""
    rank: int | None = None
    """Of each adapter; None: the product's where one goes on, else by the number of facts."""
    edit: Callable[[TrainPlan, Path], TrainReport] | None = None
    """What takes the trainer's place."""

    @property
    def replays(self) -> bool:
        """Whether earlier facts are given to the trainer at all."""
        return self.settings.get("replayed_per_step") != 0

    def method(self, plan: TrainPlan) -> Method:
        """The hooks for one plan."""
        if not (self.apart and plan.lineage):
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
MILORA: Final = Method(start=_minor, relieved=True)
PISSA: Final = Method(config={"init_lora_weights": "pissa"}, relieved=True)
MICA: Final = Method(config={"init_lora_weights": "mica"})

WAYS: Final[Mapping[str, Way]] = {
    "frozen": Way("the base as it is", NOTHING, LONG, rates=(), learns=False),
    "told": Way(
        "the base, told the right fact first", NOTHING, LONG, rates=(), learns=False, told="right"
    ),
    "retrieved": Way(
        "the base, told what BM25 finds", NOTHING, LONG, rates=(), learns=False, told="found"
    ),
    "plain": Way("LoRA on the new facts alone", settings=ALONE),
    "decay": Way("the same with weight decay 0.3", settings={**ALONE, "weight_decay": 0.3}),
    "small": Way(
        "the same with ‖ΔW‖ held at 25", settings=ALONE, hooks=Method(after_step=_at_most(25.0))
    ),
    "o-lora": Way(
        "the same, pushed away from earlier adapters (O-LoRA)", NOTHING, ALONE, apart=True
    ),
    "palora": Way("the paper's: critical SVF components spared, both sides", SVF, ALONE),
    "palora inputs": Way(
        "the same, on the input side alone", SVF, ALONE, Method(protect=_inputs_only)
    ),
    "random": Way("as many components drawn at random", SVF, ALONE, components(at_random)),
    "palora by change": Way(
        "as many, by |δ| instead of σ²δ²", SVF, ALONE, components(relative_change)
    ),
    "palora by energy": Way(
        "as many, by what passes through them", SVF, ALONE, components(passed_energy)
    ),
    "palora by fisher": Way(
        "as many, by the Fisher information of δ", SVF, ALONE, components(fisher), calibrates=True
    ),
    "oplora": Way("as many of the largest components (OPLoRA)", SVF, ALONE, components(largest)),
    "milora": Way("the smallest components trained (MiLoRA)", NOTHING, ALONE, MILORA),
    "pissa": Way("the largest components trained (PEFT's PiSSA)", NOTHING, ALONE, PISSA),
    "mica": Way("into the smallest left vectors (PEFT's MiCA)", NOTHING, ALONE, MICA),
    "corda": Way(
        "least for known facts and reasoning trained (PEFT's CorDA-KPM)",
        settings=ALONE,
        hooks=Method(protect=_corda, config=CORDA_KPM, relieved=True),
        calibrates=True,
    ),
    "osf": Way(
        "all of the smaller half of the components (OSF's space)",
        SVF,
        ALONE,
        components(largest, half),
        rank=128,
    ),
    "alphaedit": Way(
        "closed form in the null space of known facts and reasoning (AlphaEdit)",
        settings=ALONE,
        rates=(0.5, 1.0, 2.0),
        calibrates=True,
        edit=alphaedit,
    ),
    "null space": Way("70 % of the skill's input directions spared", Protection(share=0.7), ALONE),
    "null space, known too": Way(
        "70 % of the directions of the skill and of known facts spared",
        settings=ALONE,
        hooks=spared(0.7),
        calibrates=True,
    ),
    "null space, soft": Way("λ(C+λI)⁻¹ of the skill's inputs", Protection(form="soft"), ALONE),
    "replay": Way("facts, known facts and reasoning replayed by label", settings=LABELS),
    "null space + replay": Way("the same on the null space of 70 %", Protection(share=0.7), LABELS),
    "kl_weight": Way("replay held to the frozen reference, nothing spared", settings=LONG),
    "palorad": Way(
        "the product: held to the reference, 20 % spared, one adapter goes on",
        Protection(),
        FULL,
        rates=(),
        lineage="warm-start",
        paraphrases=MANY,
        retrain_at=RENEW,
    ),
    "palorad, quick": Way(
        "the product with a sixth of the text, but for many facts at once, as on a CPU",
        Protection(),
        QUICK,
        rates=(),
        lineage="warm-start",
        paraphrases=MANY,
        retrain_at=RENEW,
        by_need=True,
    ),
    "going on": Way(
        "the product, never retrained from scratch",
        Protection(),
        FULL,
        rates=(),
        lineage="warm-start",
        paraphrases=MANY,
    ),
    "going on, quick": Way(
        "the product with a sixth of the text, never retrained from scratch",
        Protection(),
        QUICK,
        rates=(),
        lineage="warm-start",
        paraphrases=MANY,
    ),
    "palorad, known spared": Way(
        "the quick way, 20 % of the directions of the skill and of known facts spared",
        settings=QUICK,
        hooks=spared(0.2),
        rates=(),
        lineage="warm-start",
        paraphrases=MANY,
    ),
    "palorad, prefixed": Way(
        "the quick way, half of the paraphrases in frames",
        Protection(),
        QUICK,
        rates=(),
        lineage="warm-start",
        paraphrases=MANY,
        prefixed=True,
    ),
    "palorad, muon": Way(
        "the quick way with Muon in AdamW's place",
        Protection(),
        {**QUICK, "optimizer": "muon"},
        rates=(),
        lineage="warm-start",
        paraphrases=MANY,
    ),
    "replay, going on": Way(
        "facts, known facts and reasoning replayed by label in the product's shares, one adapter",
        settings={**THREE_IN_ONE, "kl_weight": 0.0},
        rates=ONWARD_RATES,
        lineage="warm-start",
        paraphrases=MANY,
    ),
    "null space + replay, going on": Way(
        "the same on the null space of 70 %, which leaves room for half the rank",
        Protection(share=0.7),
        {**THREE_IN_ONE, "kl_weight": 0.0},
        rates=ONWARD_RATES,
        lineage="warm-start",
        paraphrases=MANY,
        rank=64,
    ),
    "stacked": Way(
        "the product's stack, every adapter on top of the earlier ones", Protection(), IN_A_STACK
    ),
    "afresh": Way(
        "the product, all facts learnt anew by one adapter wherever it is measured",
        Protection(),
        FULL,
        rates=(),
        lineage="afresh",
        paraphrases=MANY,
    ),
}
