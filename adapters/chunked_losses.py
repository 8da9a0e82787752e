"""Losses of hidden states through a frozen output matrix, without ever holding all of the logits.

The logits of 4,096 tokens over a vocabulary of 128,000 are 2 GB each time that they are written
out. Here they exist for a chunk of tokens only: the output matrix is frozen, so that a token's loss
has a gradient to that token's state alone, and that is found in the same go as the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK_BYTES: Final = 32 << 20
"""Of one chunk's logits in fp32. A few times as much is in use at once."""

_Sloped = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""Losses (c,) and their gradients to the logits (c, vocabulary) of a chunk, from its logits in
fp32, which may be overwritten, and its place among all tokens."""


@dataclass(frozen=True, slots=True)
class Head:
    """A frozen output matrix (vocabulary, hidden size) in the precision of its products."""

    weight: Tensor
    bias: Tensor | None = None

    @classmethod
    def of(cls, matrix: Any) -> Head | None:
        """The model's output matrix; None for one that is trained, or is no plain matrix."""
        if type(matrix) is not nn.Linear or matrix.weight.requires_grad:
            return None
        weight, device = matrix.weight, matrix.weight.device.type
        if torch.is_autocast_enabled(device):
            # Autocast would round a frozen matrix again for every product.
            weight = weight.to(torch.get_autocast_dtype(device))
        return cls(weight, matrix.bias)

    def logits(self, states: Tensor) -> Tensor:
        """Logits (m, vocabulary) in fp32 of hidden states (m, hidden size)."""
        bias = None if self.bias is None else self.bias.to(self.weight.dtype)
        return F.linear(states.to(self.weight.dtype), self.weight, bias).float()

    def chunks(self, tokens: int) -> Iterator[slice]:
        """Parts of so many tokens, each with `CHUNK_BYTES` of logits at most."""
        size = max(1, CHUNK_BYTES // (4 * len(self.weight)))
        return (slice(first, first + size) for first in range(0, tokens, size))


def cross_entropy(head: Head, states: Tensor, targets: Tensor) -> Tensor:
    """Loss (m,) of each of the target tokens (m,) after the hidden states (m, hidden size)."""

    def sloped(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        logs, chosen = F.log_softmax(logits, dim=-1), targets[part, None]
        losses = -logs.gather(1, chosen)[:, 0]
        return losses, logs.exp_().scatter_add_(
            1, chosen, -torch.ones_like(chosen, dtype=logs.dtype)
        )

    return _apply(head, states, sloped)


def kl_divergence(head: Head, of_base: Tensor, of_model: Tensor, temperature: float) -> Tensor:
    """KL(base ‖ model) (m,) after hidden states (m, hidden size), both at a temperature.

    Its square keeps the gradient's size (Hinton, Vinyals, Dean, arXiv 1503.02531).
    """

    def sloped(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        before = F.log_softmax(head.logits(of_base[part]).div_(temperature), dim=-1)
        now = F.log_softmax(logits.div_(temperature), dim=-1)
        gaps = torch.sub(before, now, out=logits)
        wanted = before.exp_()
        losses = temperature**2 * gaps.mul_(wanted).sum(dim=-1)
        return losses, now.exp_().sub_(wanted).mul_(temperature)

    return _apply(head, of_model, sloped)


@torch.no_grad()
def entropy(head: Head, states: Tensor) -> Tensor:
    """Entropy (m,) in nats of the next token after hidden states (m, hidden size)."""
    found = [states.new_empty(0, dtype=torch.float32)]
    for part in head.chunks(len(states)):
        logs = F.log_softmax(head.logits(states[part]), dim=-1)
        found.append(-(logs.exp() * logs).sum(dim=-1))
    return torch.cat(found)


def _apply(head: Head, states: Tensor, sloped: _Sloped) -> Tensor:
    found: Tensor = _Chunked.apply(states, head, sloped)  # type: ignore[no-untyped-call]
    return found


class _Chunked(torch.autograd.Function):
    """A loss of each state, with its gradient to that state."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Head, sloped: _Sloped) -> Tensor:
        losses = [states.new_empty(0, dtype=torch.float32)]
        slopes = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for part in head.chunks(len(states)):
            found, slope = sloped(head.logits(states[part]), part)
            losses.append(found)
            if slopes is not None:
                slopes[part] = slope.to(head.weight.dtype) @ head.weight
        ctx.save_for_backward(slopes)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (slopes,) = ctx.saved_tensors
        return slopes * gradient[:, None].to(slopes.dtype), None, None
