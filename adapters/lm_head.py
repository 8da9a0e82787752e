"""Losses of hidden states through the output matrix, without ever holding all of the logits.

The logits of 4,096 tokens over a vocabulary of 128,000 are 2 GB each time that they are written
out. Where the output matrix is frozen, a token's loss has a gradient to that token's state alone,
so that both are found for one chunk of tokens after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters import memory

CHUNK_BYTES: Final = memory.CHUNK_BYTES

_Sloped = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""Losses (c,) and their gradients to the logits (c, vocabulary) of a chunk, from its logits in
fp32, which may be overwritten, and its place among all tokens."""


@dataclass(frozen=True, slots=True)
class WholeHead:
    """An output matrix that is trained, or is no plain matrix: all logits at once."""

    matrix: Any

    def cross_entropy(self, states: Tensor, targets: Tensor) -> Tensor:
        """Loss (m,) of each of the target tokens (m,) after the hidden states (m, hidden size)."""
        return F.cross_entropy(self.matrix(states).float(), targets, reduction="none")

    def kl_divergence(self, of_base: Tensor, of_model: Tensor, temperature: float) -> Tensor:
        """KL(base ‖ model) (m,) after hidden states (m, hidden size), both at a temperature.

        Its square keeps the gradient's size (Hinton, Vinyals, Dean, arXiv 1503.02531).
        """
        before = F.log_softmax(self.matrix(of_base).detach().float() / temperature, dim=-1)
        now = F.log_softmax(self.matrix(of_model).float() / temperature, dim=-1)
        return temperature**2 * F.kl_div(now, before, reduction="none", log_target=True).sum(-1)

    def entropy(self, states: Tensor) -> Tensor:
        """Entropy (m,) in nats of the next token after hidden states (m, hidden size)."""
        logs = F.log_softmax(self.matrix(states).float(), dim=-1)
        return -(logs.exp() * logs).sum(dim=-1)


@dataclass(frozen=True, slots=True)
class ChunkedHead:
    """A frozen output matrix (vocabulary, hidden size) in the precision of its products.

    Gives what `WholeHead` gives; beside the entropy also the gradients, in chunks.
    """

    weight: Tensor
    bias: Tensor | None = None

    def logits(self, states: Tensor) -> Tensor:
        """Logits (m, vocabulary) in fp32 of hidden states (m, hidden size)."""
        bias = None if self.bias is None else self.bias.to(self.weight.dtype)
        return F.linear(states.to(self.weight.dtype), self.weight, bias).float()

    def chunks(self, tokens: int) -> Iterator[slice]:
        """Parts of so many tokens, each with `CHUNK_BYTES` of logits at most."""
        size = max(1, CHUNK_BYTES // (4 * len(self.weight)))
        return (slice(first, first + size) for first in range(0, tokens, size))

    def cross_entropy(self, states: Tensor, targets: Tensor) -> Tensor:
        """As of the whole."""

        def sloped(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            logs, chosen = F.log_softmax(logits, dim=-1), targets[part, None]
            losses = -logs.gather(1, chosen)[:, 0]
            slope = logs.exp_()
            return losses, slope.scatter_add_(1, chosen, slope.new_full(chosen.shape, -1.0))

        return self._found(states, sloped)

    def kl_divergence(self, of_base: Tensor, of_model: Tensor, temperature: float) -> Tensor:
        """As of the whole."""

        def sloped(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            before = F.log_softmax(self.logits(of_base[part]).div_(temperature), dim=-1)
            now = F.log_softmax(logits.div_(temperature), dim=-1)
            gaps = torch.sub(before, now, out=logits)
            wanted = before.exp_()
            losses = temperature**2 * gaps.mul_(wanted).sum(dim=-1)
            return losses, now.exp_().sub_(wanted).mul_(temperature)

        return self._found(of_model, sloped)

    @torch.no_grad()
    def entropy(self, states: Tensor) -> Tensor:
        """As of the whole, but without a gradient."""
        found = [states.new_empty(0, dtype=torch.float32)]
        for part in self.chunks(len(states)):
            logs = F.log_softmax(self.logits(states[part]), dim=-1)
            found.append(-(logs.exp() * logs).sum(dim=-1))
        return torch.cat(found)

    def _found(self, states: Tensor, sloped: _Sloped) -> Tensor:
        found: Tensor = _Chunked.apply(states, self, sloped)  # type: ignore[no-untyped-call]  # torch leaves `apply` untyped
        return found


Head = WholeHead | ChunkedHead


def head_of(model: Any) -> Head:
    """The model's output matrix, in chunks where it is a plain one that is frozen."""
    matrix = model.get_output_embeddings()
    if type(matrix) is not nn.Linear or matrix.weight.requires_grad:
        return WholeHead(matrix)
    weight, device = matrix.weight, matrix.weight.device.type
    if torch.is_autocast_enabled(device):
        # Autocast would round a frozen matrix again for every product.
        weight = weight.to(torch.get_autocast_dtype(device))
    return ChunkedHead(weight, matrix.bias)


class _Chunked(torch.autograd.Function):
    """A loss of each state, with its gradient to that state."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: ChunkedHead, sloped: _Sloped) -> Tensor:
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
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * gradient[:, None].to(slopes.dtype), None, None
