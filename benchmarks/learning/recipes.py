"""Recipes of other methods: where each differs from the product in set-up or step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from peft import LoraConfig
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import Tensor, nn

from adapters import compose, lora, models, projection
from adapters.attach import NEW, Attached, attach, extract
from adapters.config import TrainConfig
from adapters.losses import Objective
from adapters.passes import Passes
from adapters.plans import TrainPlan
from adapters.projection import Protected
from adapters.recipe import Recipe
from adapters.replay import encode_pools
from adapters.subspace import empty
from benchmarks.learning.muon import Muon
from benchmarks.learning.scores import CALIBRATION

CORDA_KPM: Final[dict[str, Any]] = {
    "init_lora_weights": "corda",
    "corda_config": CordaConfig(corda_method="kpm"),
}


class InputsOnly(Recipe):
    """The product's protection on the input side alone."""

    def protected(self, base: nn.Module, plan: TrainPlan) -> Mapping[str, Protected]:
        """Nothing is protected on the output side."""
        return {
            name: Protected(guard.inputs, empty(guard.outputs.shape[0]), guard.soft)
            for name, guard in super().protected(base, plan).items()
        }


class NormBound(Recipe):
    """‖ΔW‖ over all matrices is scaled back to a bound after each step."""

    def __init__(self, norm: float) -> None:
        self._norm = norm

    def update(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """The step, and what brings the norm back."""
        super().update(model, optimizer)
        share = self._norm / max(extract(model).norm(), self._norm)
        with torch.no_grad():
            for layer in projection.lora_layers(model, NEW).values():
                layer.lora_B[NEW].weight.mul_(share)


class OLoRA(Recipe):
    """O-LoRA (arXiv 2310.14152): the penalty 0.5 · Σ|A_new A_earlierᵀ| over all matrices."""

    def __init__(self) -> None:
        self._earlier: Mapping[str, tuple[Tensor, Tensor]] = {}

    def attach(self, base: nn.Module, plan: TrainPlan) -> Attached:
        """As usual; remembers the adapters of the lineage."""
        self._earlier = compose.concatenate([lora.read(path) for path in plan.lineage]).factors
        return super().attach(base, plan)

    def gradients(
        self, model: nn.Module, objective: Objective, passes: Passes
    ) -> tuple[float, dict[str, float]]:
        """Those of the step and of the penalty."""
        found = super().gradients(model, objective, passes)
        if self._earlier:
            torch.autograd.backward(self._penalty(model))
        return found

    def _penalty(self, model: nn.Module) -> Tensor:
        overlaps = [
            (layer.lora_A[NEW].weight @ self._earlier[name][0].to(layer.lora_A[NEW].weight).mT)
            for name, layer in projection.lora_layers(model, NEW).items()
            if name in self._earlier
        ]
        return 0.5 * torch.stack([overlap.abs().sum() for overlap in overlaps]).sum()


class MuonSteps(Recipe):
    """Muon instead of AdamW."""

    def optimizer(
        self, factors: Sequence[Tensor], config: TrainConfig, rate: float
    ) -> torch.optim.Optimizer:
        """Muon at the same rate and weight decay."""
        return Muon(factors, rate, weight_decay=config.weight_decay)


class Initialised(Recipe):
    """PEFT's own initialisations of the factors: "pissa", "mica", …"""

    def __init__(self, **options: object) -> None:
        self._options = options

    def attach(self, base: nn.Module, plan: TrainPlan) -> Attached:
        """With further options of PEFT's configuration."""
        return attach(base, plan, self._options)


class Relieved(Initialised):
    """As initialised, where PEFT takes the initial factors out of the base: they are taken out of
    the result as well."""

    def result(self, attached: Attached) -> lora.Lora:
        """What the factors gained over their start."""
        return lora.beyond(attached.initial, super().result(attached))


class MiLoRA(Relieved):
    """MiLoRA (arXiv 2406.09044): begin with the smallest singular components, out of the base."""

    def attach(self, base: nn.Module, plan: TrainPlan) -> Attached:
        """With the components moved from the base into the factors."""
        attached = super().attach(base, plan)
        for layer in projection.lora_layers(attached.model, NEW).values():
            down, up = layer.lora_A[NEW].weight, layer.lora_B[NEW].weight
            own, scaling, rank = layer.get_base_layer().weight, layer.scaling[NEW], down.shape[0]
            left, sigma, right = torch.linalg.svd(own.detach().float(), full_matrices=False)
            root = (sigma[-rank:] / scaling).sqrt()
            down.data.copy_(root[:, None] * right[-rank:])
            up.data.copy_(left[:, -rank:] * root)
            own.data -= (scaling * up.data @ down.data).to(own.dtype)
        return replace(attached, initial=extract(attached.model))


class CorDA(Relieved):
    """CorDA (arXiv 2406.05223), knowledge-preserved: it looks at the inputs of what is to stay."""

    def __init__(self) -> None:
        super().__init__(**CORDA_KPM)

    def attach(self, base: nn.Module, plan: TrainPlan) -> Attached:
        """After a pass over known facts and reasoning, one text at a time."""
        pools = encode_pools(plan, models.load_tokenizer(plan.model_dir))
        texts = [paraphrases[0] for paraphrases in (*pools.known, *pools.reasoning)]
        config = LoraConfig(r=plan.rank, target_modules=list(plan.config.targets), **CORDA_KPM)

        def look() -> None:
            for text in texts[:: max(1, len(texts) // CALIBRATION)]:
                base(torch.tensor([text.ids]))

        preprocess_corda(base, config, look)
        return super().attach(base, plan)
