"""Singular value fine-tuning: learn how much each singular component of a matrix matters.

W′ = U diag(σ ⊙ m) Vᵀ with m = 1 + δ and δ = 0 at the start (Transformer², arXiv 2501.06252, which
learns a sigmoid instead). Only the narrow side's vectors are needed: W′x = W(x + V(δ ⊙ Vᵀx)) when
the input is narrow, W′x = y + U(δ ⊙ Uᵀy) with y = Wx when the output is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapters.errors import TrainingDiverged
from adapters.examples import Encoded, buckets, collate, length
from adapters.losses import token_losses
from adapters.subspace import spectrum


def narrow_is_input(weight: Tensor) -> bool:
    """Whether the input is the narrow side of a weight (out, in)."""
    return weight.shape[1] <= weight.shape[0]


def decompose(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values (n,) and the narrow side's vectors (n, n) of a weight, in float64.

    From the eigendecomposition of the float64 Gram matrix: half the work of a full SVD or less.
    """
    exact = weight.double()
    gram = exact.mT @ exact if narrow_is_input(weight) else exact @ exact.mT
    values, vectors = spectrum(gram)
    return values.sqrt(), vectors


class Scaling(nn.Module):
    """The learnt δ (n,) of one matrix and the hooks that apply it."""

    def __init__(self, matrix: nn.Linear, vectors: Tensor) -> None:
        super().__init__()
        weight = matrix.weight
        self.basis = vectors.to(device=weight.device, dtype=weight.dtype)
        self.delta = nn.Parameter(torch.zeros(vectors.shape[0], device=weight.device))
        if narrow_is_input(weight):
            self.handle = matrix.register_forward_pre_hook(self._on_input)
        else:
            self.handle = matrix.register_forward_hook(self._on_output)

    def _change(self, x: Tensor) -> Tensor:
        scaled: Tensor = (x @ self.basis) * self.delta.to(x.dtype)
        changed: Tensor = x + scaled @ self.basis.mT
        return changed

    def _on_input(self, module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self._change(args[0]), *args[1:])

    def _on_output(self, module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if module.bias is None:
            return self._change(output)
        bias: Tensor = module.bias
        return self._change(output - bias) + bias


def train(
    model: Any,
    matrices: Mapping[str, nn.Linear],
    basis_of: Callable[[str], Tensor],
    pool: Sequence[Sequence[Encoded]],
    *,
    pad_id: int,
    seed: int,
    steps: int,
    learning_rate: float,
    decay: float,
    batch: int,
    max_tokens: int,
    on_step: Callable[[int, float], None],
    measure: Callable[[], float],
) -> tuple[dict[str, Tensor], float]:
    """δ (n,) by matrix name after `steps` of Adam, and `measure()` with it in force.

    `basis_of` gives the narrow side's vectors (n, n) of a matrix; `pool` holds the examples, each
    in its forms; `decay` is the weight of Σδ² in the loss. Raises `TrainingDiverged` when the loss
    is no longer finite.
    """
    rng = random.Random(f"svf:{seed}")
    scalings = {name: Scaling(matrix, basis_of(name)) for name, matrix in matrices.items()}
    parameters: list[Tensor] = [scaling.delta for scaling in scalings.values()]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    device = parameters[0].device
    try:
        for step in range(steps):
            chosen = [rng.choice(list(rng.choice(list(pool)))) for _ in range(batch)]
            total = sum(len(one.ids) - one.start for one in chosen)
            torch.autograd.backward(decay * torch.cat(parameters).square().sum())
            shown = 0.0
            for group in buckets(chosen, max_tokens, length):
                losses, _ = token_losses(model, collate(group, pad_id).to(device))
                part = losses.sum() / total
                torch.autograd.backward(part)
                shown += float(part.detach())
            if not torch.isfinite(torch.tensor(shown)):
                raise TrainingDiverged(
                    f"probe, seed {seed}: the loss at step {step} is {shown}; "
                    "lower [probe] learning_rate"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            on_step(step + 1, shown)
        with torch.no_grad():
            after = measure()
        return {name: s.delta.detach().cpu() for name, s in scalings.items()}, after
    finally:
        for scaling in scalings.values():
            scaling.handle.remove()


def fold(weight: Tensor, vectors: Tensor, delta: Tensor) -> Tensor:
    """W′ = U diag(σ ⊙ (1 + δ)) Vᵀ of a weight (out, in), computed in float64."""
    exact, basis = weight.double(), vectors.double()
    change = (basis * delta.double()) @ basis.mT
    return exact + (exact @ change if narrow_is_input(weight) else change @ exact)


def critical(sigma: Tensor, deltas: Tensor, *, energy: float, cap: float, seeds: int) -> Tensor:
    """Indices of the critical components: those with the largest score σ²δ².

    The score is the energy of a component's own update. `deltas` is (number of seeds, n). For one
    seed the smallest set with a share `energy` of the score is critical, at most `cap`·n of them;
    what is critical for at least `seeds` of them counts.
    """
    chosen = selections(sigma, deltas, energy=energy, cap=cap)
    return (chosen.sum(dim=0) >= min(seeds, deltas.shape[0])).nonzero()[:, 0]


def selections(sigma: Tensor, deltas: Tensor, *, energy: float, cap: float) -> Tensor:
    """Which components each seed selects, as booleans (number of seeds, n)."""
    n = sigma.shape[0]
    scores = sigma.double().square() * deltas.double().square()
    chosen = torch.zeros(deltas.shape, dtype=torch.bool)
    for row, score in enumerate(scores):
        order = score.argsort(descending=True)
        ordered = score[order].cumsum(0)
        if float(ordered[-1]) <= 0.0:
            continue
        k = int((ordered < energy * ordered[-1]).sum()) + 1
        chosen[row, order[: max(1, min(k, round(cap * n)))]] = True
    return chosen


def agreement(chosen: Tensor) -> tuple[float, float]:
    """Mean Jaccard overlap of the seeds' selections, and what chance gives for their sizes.

    Two random sets of k out of n overlap by k/(2n − k).
    """
    count, n = chosen.shape
    found, chance = [], []
    for left in range(count):
        for right in range(left + 1, count):
            both = float((chosen[left] & chosen[right]).sum())
            either = float((chosen[left] | chosen[right]).sum())
            expected = float(chosen[left].sum()) * float(chosen[right].sum()) / n
            union = float(chosen[left].sum()) + float(chosen[right].sum()) - expected
            if either > 0:
                found.append(both / either)
                chance.append(expected / union)
    if not found:
        return 0.0, 0.0
    return sum(found) / len(found), sum(chance) / len(chance)
