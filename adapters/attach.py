"""The model that is trained: base, lineage active and frozen, and one fresh adapter."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from adapters import compose, lora, models, projection
from adapters.config import MLP
from adapters.plans import TrainPlan

NEW = "new"
EARLIER = "earlier"
ALL = (*MLP, *models.ATTENTION)


@dataclass(frozen=True)
class Attached:
    """The model to train, and the way back to the weights that it started from."""

    model: Any
    pristine: Sequence[tuple[torch.nn.Linear, torch.Tensor]]
    """The matrices to which updates are added, each with the base's own weight."""
    initial: lora.Lora
    """The fresh adapter before it is trained."""

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """For a while the frozen base: without the lineage and the new adapter."""
        layers = [m for m in self.model.modules() if isinstance(m, BaseTunerLayer)]
        moved = [matrix.weight.data for matrix, _ in self.pristine]
        # PEFT's own switch would also make frozen adapters trainable when it is turned back.
        for layer in layers:
            layer._disable_adapters = True
        for matrix, weight in self.pristine:
            matrix.weight.data = weight
        try:
            yield self.model
        finally:
            for layer in layers:
                layer._disable_adapters = False
            for (matrix, _), weight in zip(self.pristine, moved, strict=True):
                matrix.weight.data = weight


def attach(
    base: Any,
    plan: TrainPlan,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Attached:
    """The base with the lineage active and frozen, and a fresh trainable adapter.

    In fp32 the lineage is added to the weights, so that a step costs the same after any number of
    adapters; in lower precision that would round it, so it stays a frozen adapter of its own.
    `options` are further options of PEFT's configuration.
    """
    matrices = models.matrices(base, plan.config.targets)
    lineage = compose.concatenate([lora.read(path) for path in plan.lineage])
    merged = base.dtype == torch.float32
    pristine = []
    if merged:
        everything = models.matrices(base, ALL)
        pristine = [(matrix, matrix.weight.data) for matrix in everything.values()]
        for name in lineage.factors:
            own = everything[name].weight.data
            added = own.double() + lineage.delta(name).to(own.device)
            everything[name].weight.data = added.float()
    configured = {
        "r": plan.rank,
        "lora_alpha": plan.config.scale(plan.rank) * plan.rank,
        "target_modules": list(plan.config.targets),
        "task_type": "CAUSAL_LM",
        **options,
    }
    with _quiet():
        model = get_peft_model(base, LoraConfig(**configured), adapter_name=NEW)
    if "init_lora_weights" not in options:
        _initialise(model, matrices, plan)
    if plan.start:
        _warm_start(model, [lora.read(path) for path in plan.start])
    if lineage.factors and not merged:
        _add_frozen(model, lineage)
    return Attached(model, pristine, extract(model))


def extract(model: Any) -> lora.Lora:
    """A copy of the factors in fp32 on the CPU."""
    factors, scaling = {}, {}
    for name, layer in projection.lora_layers(model, NEW).items():
        down, up = layer.lora_A[NEW].weight.detach(), layer.lora_B[NEW].weight.detach()
        factors[name] = (
            down.to("cpu", torch.float32, copy=True),
            up.to("cpu", torch.float32, copy=True),
        )
        scaling[name] = float(layer.scaling[NEW])
    return lora.Lora(factors, scaling)


def _initialise(model: Any, matrices: Mapping[str, Any], plan: TrainPlan) -> None:
    """A uniform in ±1/√in as PEFT does, B zero; by matrix name, whatever the order of modules."""
    layers = projection.lora_layers(model, NEW)
    for name in matrices:
        layer = layers[name]
        weight = layer.lora_A[NEW].weight
        seed = hashlib.sha256(f"{plan.seed}:{name}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(seed) >> 1)
        values = torch.rand(weight.shape, generator=generator) * 2 - 1
        weight.data.copy_(values / math.sqrt(weight.shape[1]))
        layer.lora_B[NEW].weight.data.zero_()


@torch.no_grad()
def _warm_start(model: Any, adapters: Sequence[lora.Lora]) -> None:
    """Start the new adapter as the sum of others, truncated to its rank.

    Split evenly between the factors, so that both move alike. Rows beyond the sum's rank keep
    their random A and a B of zero.
    """
    total = compose.concatenate(adapters)
    for name, layer in projection.lora_layers(model, NEW).items():
        if name not in total.factors:
            continue
        down, up = layer.lora_A[NEW].weight, layer.lora_B[NEW].weight
        known_down, known_up = compose.truncated(total, name, down.shape[0])
        root = math.sqrt(layer.scaling[NEW])
        rank = known_down.shape[0]
        down[:rank] = (known_down / root).to(down)
        up[:, :rank] = (known_up / root).to(up)


def _add_frozen(model: Any, lineage: lora.Lora) -> None:
    """Make the composed lineage a second, frozen and active adapter of the model."""
    rank = lineage.rank
    with _quiet():
        model.add_adapter(
            EARLIER,
            LoraConfig(
                r=rank,
                lora_alpha=rank,
                target_modules=sorted({n.rsplit(".", 1)[-1] for n in lineage.factors}),
                task_type="CAUSAL_LM",
            ),
        )
    for name, layer in projection.lora_layers(model, EARLIER).items():
        down, up = compose.padded(lineage, rank).factors[name]
        layer.lora_A[EARLIER].weight.data.copy_(down)
        layer.lora_B[EARLIER].weight.data.copy_(up)
    model.base_model.set_adapter([NEW, EARLIER])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".{NEW}." in name)


@contextmanager
def _quiet() -> Iterator[None]:
    """PEFT 0.21 asks transformers 5 for a deprecated property; nobody here can act on it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        yield
