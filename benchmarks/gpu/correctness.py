"""A step of the product on a small shape, its loss and gradients beside float64's.

The other side shares no code with it: each text by itself, whole logits, the update added to the
weights, the base's own predictions found by passing the texts through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from adapters import precision
from adapters.attach import NEW
from adapters.examples import Encoded
from adapters.losses import Objective
from adapters.passes import Passes
from adapters.plans import TrainPlan, TrainProgress
from adapters.projection import Protected, lora_layers
from adapters.trainer import train_adapter
from benchmarks.gpu import shapes
from benchmarks.gpu.bench import Bench, resident
from benchmarks.gpu.runs import TIMED, Enough, Watched, usual

CHECKED = 2
"""The step that is compared, the third: from the second on both factors have gradients."""


@dataclass
class Captured(Watched):
    """Keeps what the compared step read, its factors before it, and its gradients."""

    guards: Mapping[str, Protected] = field(default_factory=dict)
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    gradient: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    objective: Objective | None = None
    loss: float = 0.0

    def protected(self, base: Any, plan: TrainPlan) -> Mapping[str, Protected]:
        """As drawn."""
        self.guards = super().protected(base, plan)
        return self.guards

    def gradients(
        self, model: Any, objective: Objective, passes: Passes
    ) -> tuple[float, dict[str, float]]:
        """As the product."""
        pairs = {
            name: (layer.lora_A[NEW].weight, layer.lora_B[NEW].weight)
            for name, layer in lora_layers(model, NEW).items()
        }
        self.factors = {
            n: (a.detach().double(), b.detach().double()) for n, (a, b) in pairs.items()
        }
        self.objective = objective
        self.loss, of_facts = super().gradients(model, objective, passes)
        self.gradient = {n: (a.grad.double(), b.grad.double()) for n, (a, b) in pairs.items()}
        return self.loss, of_facts


def run(bench: Bench) -> dict[str, Any]:
    """Relative errors: of the loss, and of all gradients together (their norm).

    `float32` with products in fp32, `product` in the precisions that the product uses here.
    """
    small = shapes.shapes()["tiny"]
    its = Bench(small, bench.device, bench.folder / "small", bench.seed)
    exact = shapes.build(small.config, torch.device("cpu"), torch.float32, bench.seed)
    found: dict[str, Any] = {}
    for name, dtype in (("float32", torch.float32), ("product", None)):
        plain = mock.patch.object(precision, "multiplies_bf16", lambda: False)
        with plain if dtype is torch.float32 else nullcontext():
            base = shapes.build(small.config, torch.device("cpu"), torch.float32, bench.seed)
            base = base.to(bench.device, dtype or _dtype(bench.device))
            found[name] = _compare(its, base, exact.to(bench.device))
    return found


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _compare(bench: Bench, base: Any, exact: Any) -> dict[str, float]:
    recipe = Captured()
    plan = bench.plan(usual(bench).model_copy(update={**TIMED, "steps": 10}))

    def after(progress: TrainProgress) -> None:
        if progress.step == CHECKED + 1:
            raise Enough

    # In float64 from the rounded weights: the error is the step's own, not the rounding of a base.
    exact = exact.double()
    weights = {n: p.detach().double() for n, p in base.named_parameters()}
    exact.load_state_dict(weights, strict=False)
    try:
        with resident(base), TemporaryDirectory() as folder:
            train_adapter(
                plan, out=Path(folder, "o"), work=Path(folder, "w"), progress=after, recipe=recipe
            )
    except Enough:
        pass
    scaling = plan.config.scale(plan.rank)
    loss, gradient = reference_step(exact, recipe, scaling)
    apart = total = 0.0
    for name, pair in recipe.gradient.items():
        for ours, theirs in zip(pair, gradient[name], strict=True):
            apart += float((ours - theirs).square().sum())
            total += float(theirs.square().sum())
    return {
        "loss": recipe.loss,
        "loss_error": abs(recipe.loss - loss) / abs(loss),
        "gradient_error": (apart / total) ** 0.5,
    }


def reference_step(
    exact: Any, recipe: Captured, scaling: float
) -> tuple[float, dict[str, tuple[Tensor, Tensor]]]:
    """The facts' loss per new token, and the gradients of each A and B, in float64."""
    objective = recipe.objective
    if objective is None:
        raise RuntimeError("no step was captured")
    leaves = {
        name: (down.clone().requires_grad_(), up.clone().requires_grad_())
        for name, (down, up) in recipe.factors.items()
    }
    own = dict(exact.named_parameters())
    updated = {}
    for name, (down, up) in leaves.items():
        basis = recipe.guards[name].inputs.double().to(down.device)
        free = down - (down @ basis) @ basis.mT
        updated[f"{name}.weight"] = own[f"{name}.weight"].detach() + scaling * (up @ free)
    count = sum(len(one.ids) - one.start for one in objective.new)
    facts = [*objective.new, *objective.replayed]
    nothing = torch.zeros((), dtype=torch.float64, device=exact.device)
    loss = sum((_entropy(exact, updated, one) for one in facts), nothing) / count
    whole = loss
    for term in objective.kl_terms:
        learnt = sum(len(one.ids) - one.start for one in term.texts)
        apart = _divergence(exact, updated, term.texts, objective.temperature)
        whole = whole + term.weight * apart / learnt
    torch.autograd.backward(whole)
    return float(loss.detach()), {n: _gradients(down, up) for n, (down, up) in leaves.items()}


def _gradients(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    if down.grad is None or up.grad is None:
        raise RuntimeError("a factor has no gradient")
    return down.grad, up.grad


def _logits(model: Any, weights: Mapping[str, Tensor], text: Encoded) -> Tensor:
    """Logits (m, vocabulary) before the m learnt tokens of one text."""
    ids = torch.tensor([text.ids], device=model.device)
    given = functional_call(model, dict(weights), (), {"input_ids": ids, "use_cache": False})
    found: Tensor = given.logits[0, text.start - 1 : -1]
    return found


def _entropy(model: Any, weights: Mapping[str, Tensor], text: Encoded) -> Tensor:
    targets = torch.tensor(text.ids[text.start :], device=model.device)
    return F.cross_entropy(_logits(model, weights, text), targets, reduction="sum")


def _divergence(
    model: Any, weights: Mapping[str, Tensor], texts: Sequence[Encoded], temperature: float
) -> Tensor:
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    for text in texts:
        with torch.no_grad():
            before = F.log_softmax(_logits(model, {}, text) / temperature, dim=-1)
        now = F.log_softmax(_logits(model, weights, text) / temperature, dim=-1)
        total = total + temperature**2 * (before.exp() * (before - now)).sum()
    return total
