"""How an adapter is set up and moved: the parts of a run in which methods differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adapters import compose, lora, models, projection
from adapters.attach import NEW, Attached, attach, extract
from adapters.config import TrainConfig
from adapters.losses import Objective, accumulate_gradients, decoder
from adapters.passes import Passes
from adapters.plans import TrainPlan
from adapters.precision import reduced
from adapters.probe import Probe
from adapters.projection import Protected


class Recipe:
    """The product's recipe; another method overrides the parts in which it differs."""

    def protected(self, base: Any, plan: TrainPlan) -> Mapping[str, Protected]:
        """What the update of each matrix must leave alone, by matrix name."""
        return protect(base, plan)

    def attach(self, base: Any, plan: TrainPlan) -> Attached:
        """The model that is trained: the base, the lineage, and the new adapter at its start."""
        return attach(base, plan)

    def optimizer(
        self, factors: Sequence[Tensor], config: TrainConfig, rate: float
    ) -> torch.optim.Optimizer:
        """What moves the adapter's factors."""
        return torch.optim.AdamW(
            factors, lr=rate, weight_decay=config.weight_decay, fused=factors[0].is_cuda
        )

    def gradients(
        self, model: Any, objective: Objective, passes: Passes
    ) -> tuple[float, dict[str, float]]:
        """Add a step's gradients; the loss per token of new facts, and each fact's own."""
        around = partial(fast_passes, model, passes.device)
        return accumulate_gradients(model, objective, passes, around)

    def update(self, model: Any, optimizer: torch.optim.Optimizer) -> None:
        """Move the adapter by its gradients and clear them."""
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def result(self, attached: Attached) -> lora.Lora:
        """The adapter that was trained."""
        return extract(attached.model)


def protect(base: Any, plan: TrainPlan) -> dict[str, Protected]:
    """The product's protected subspaces: the probe's, and the inputs of earlier adapters to which
    the new one is to be orthogonal; none where nothing is protected."""
    matrices = models.matrices(base, plan.config.targets)
    found: dict[str, Protected] = {}
    if plan.probe_dir is not None and plan.protection.kind != "none":
        probe = Probe.load(plan.probe_dir, plan.base_hash)
        found = {
            name: probe.protected(name, matrix.weight, plan.protection)
            for name, matrix in matrices.items()
            if name in probe.matrices
        }
    if plan.config.orthogonal:
        earlier = compose.concatenate([lora.read(path) for path in plan.lineage])
        for name in earlier.factors.keys() & matrices.keys():
            own = found.get(name) or Protected.nothing(*matrices[name].weight.shape)
            found[name] = own.beside(earlier.factors[name][0])
    return found


@contextmanager
def fast_passes(model: Any, device: torch.device, tokens: int) -> Iterator[None]:
    """Within it, passes of so many `tokens` in all share one projection of the factors, and
    products are in bf16 on a CPU that multiplies in it."""
    with projection.shared(model, NEW, tokens), reduced(device, decoder(model)):
        yield
