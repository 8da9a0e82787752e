"""Ways to learn a batch, as small plug-ins over the product's trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from adapters import compose, lora, models, projection
from adapters.attach import NEW
from adapters.plans import TrainPlan
from adapters.probe import Probe, Protection, component_spaces
from adapters.projection import Protected
from adapters.subspace import empty
from adapters.trainer import PRODUCT, Method, protect
from benchmarks.learning.judge import Told

NOTHING: Final = Protection(kind="none")
SVF: Final = Protection(kind="svf")
# What a step of the product rehearses, switched off.
ALONE: Final = {"old_per_step": 0, "known_per_step": 0, "reasoning_per_step": 0, "distil": 0.0}
# The same shares as the product's, learnt from their labels.
LABELS: Final = {"distil": 0.0}


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
    merge: int = 0
    """The latest adapters are learnt anew with new facts, each of at most so many times as many
    facts (`train.merge`)."""
    apart: bool = False
    """Whether an adapter's inputs are pushed away from those of earlier ones (O-LoRA)."""

    @property
    def rehearses(self) -> bool:
        """Whether earlier facts are given to the trainer at all."""
        return self.settings.get("old_per_step") != 0

    def method(self, plan: TrainPlan) -> Method:
        """The hooks for one plan."""
        if not (self.apart and plan.lineage):
            return self.hooks
        return replace(self.hooks, extra_loss=_away_from(plan))


def _components(choose: Callable[[Tensor, Tensor, str], Tensor]) -> Method:
    """Protect, both sides, the singular components that `choose(sigma, critical, name)` gives."""

    def protected(base: nn.Module, plan: TrainPlan) -> dict[str, Protected]:
        assert plan.probe_dir is not None  # noqa: S101 - ways with components have a probe
        probe, found = Probe.load(plan.probe_dir, plan.base_hash), {}
        for name, matrix in models.matrices(base, plan.settings.targets).items():
            weight = matrix.weight.detach().cpu()
            chosen = choose(probe.sigma(name), probe.critical(name, SVF), name)
            spaces = component_spaces(weight, probe.narrow_vectors(name, weight), chosen)
            found[name] = Protected(*spaces, None)
        return found

    return Method(protect=protected)


def _random(_sigma: Tensor, critical: Tensor, name: str) -> Tensor:
    generator = torch.Generator().manual_seed(sum(name.encode()))
    return torch.randperm(len(_sigma), generator=generator)[: len(critical)]


def _largest(sigma: Tensor, critical: Tensor, _name: str) -> Tensor:
    return torch.arange(min(len(critical), len(sigma)))


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


MILORA: Final = Method(start=_minor, relieved=True)
PISSA: Final = Method(config={"init_lora_weights": "pissa"}, relieved=True)
MICA: Final = Method(config={"init_lora_weights": "mica"})

WAYS: Final[Mapping[str, Way]] = {
    "frozen": Way("the base as it is", rates=(), learns=False),
    "told": Way("the base, told the right fact first", rates=(), learns=False, told="right"),
    "retrieved": Way("the base, told what BM25 finds", rates=(), learns=False, told="found"),
    "plain": Way("LoRA on the new facts alone", settings=ALONE),
    "decay": Way("the same with weight decay 0.3", settings={**ALONE, "weight_decay": 0.3}),
    "o-lora": Way(
        "the same, pushed away from earlier adapters (O-LoRA)", NOTHING, ALONE, apart=True
    ),
    "palora": Way("the paper's: critical SVF components spared, both sides", SVF, ALONE),
    "palora inputs": Way(
        "the same, on the input side alone", SVF, ALONE, Method(protect=_inputs_only)
    ),
    "random": Way("as many components drawn at random", SVF, ALONE, _components(_random)),
    "oplora": Way("as many of the largest components (OPLoRA)", SVF, ALONE, _components(_largest)),
    "milora": Way("the smallest components trained (MiLoRA)", NOTHING, ALONE, MILORA),
    "pissa": Way("the largest components trained (PEFT's PiSSA)", NOTHING, ALONE, PISSA),
    "mica": Way("into the smallest left vectors (PEFT's MiCA)", NOTHING, ALONE, MICA),
    "null space": Way("70 % of the skill's input directions spared", Protection(share=0.7), ALONE),
    "null space, soft": Way("λ(C+λI)⁻¹ of the skill's inputs", Protection(form="soft"), ALONE),
    "replay": Way("facts, known facts and reasoning rehearsed by label", settings=LABELS),
    "null space + replay": Way("the same on the null space of 70 %", Protection(share=0.7), LABELS),
    "distil": Way("rehearsal held to the frozen reference, nothing spared"),
    "stacked": Way("the product, every adapter on top of the earlier ones", Protection()),
    "palorad": Way(
        "the product: held to the reference, 20 % spared, adapters merged", Protection(), merge=4
    ),
    "afresh": Way("the product, all facts learnt anew at each batch", Protection(), merge=1000),
}
