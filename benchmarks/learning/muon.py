"""Muon for the factors of an adapter."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor

# Jordan's quintic, five steps of which bring singular values near to 1:
# https://kellerjordan.github.io/posts/muon/.
QUINTIC: Final = (3.4445, -4.775, 2.0315)
STEPS: Final = 5


class Muon(torch.optim.Optimizer):
    """Momentum, each of whose singular directions is taken alike.

    The root mean square of an update is .2 · lr, as of AdamW's (Moonlight, arXiv 2502.16982), so
    rates are on one scale. torch's own computes in bf16, for which CPUs without such products take
    forty times as long; here it is the parameters' type, and factors of one shape go together.
    Takes matrices alone.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(list(parameters), defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    moved = self._moved(parameter, parameter.grad, group["momentum"])
                    alike[parameter.shape].append((parameter, moved))
            for shape, members in alike.items():
                size = group["lr"] * 0.2 * math.sqrt(max(shape))
                updates = orthogonal(torch.stack([moved for _, moved in members]))
                for (parameter, _), update in zip(members, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(update, alpha=size)
        return loss

    def _moved(self, parameter: Tensor, gradient: Tensor, momentum: float) -> Tensor:
        """Nesterov's momentum."""
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        average: Tensor = state["momentum"]
        average.lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum)


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices with the same singular vectors, whose singular values are all about 1.

    What was at least a hundredth of a matrix's norm comes to lie between .6 and 1.25; 0 stays 0.
    Shape (count, rows, columns).
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if tall else matrices
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    # All steps are polynomials in the Gram matrix, which has the adapter's rank, not its width.
    gram = wide @ wide.mT
    first, third, fifth = QUINTIC
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor = identity.expand_as(gram)
    for left in reversed(range(STEPS)):
        step = torch.baddbmm(first * identity + third * gram, gram, gram, alpha=fifth)
        factor = step @ factor
        if left:
            gram = step @ gram @ step
    found: Tensor = factor @ wide
    return found.mT if tall else found
