"""Next-token loss at the learnt positions only, for training and for measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.examples import IGNORED, Batch, Encoded, buckets, collate


def learnt_logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits (m, vocabulary) in fp32 and targets (m,) of the m learnt tokens of a batch.

    The output matrix is applied to those positions alone, which for short answers saves most of
    its cost.
    """
    states, targets = learnt_states(model, batch)
    return to_logits(model, states), targets


def learnt_states(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Last hidden states (m, hidden size) before the m learnt tokens, and those tokens (m,)."""
    hidden = _plain(model).get_decoder()(input_ids=batch.ids, use_cache=False).last_hidden_state
    targets = batch.labels[:, 1:]
    learnt = targets != IGNORED
    return hidden[:, :-1][learnt], targets[learnt]


def to_logits(model: Any, states: Tensor) -> Tensor:
    """Logits (m, vocabulary) in fp32 of hidden states, by the output matrix; it is not trained."""
    logits: Tensor = _plain(model).get_output_embeddings()(states)
    return logits.float()


def _plain(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def token_losses(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss of each learnt token (m,) and the row (m,) that it belongs to."""
    logits, targets = learnt_logits(model, batch)
    rows = (batch.labels[:, 1:] != IGNORED).nonzero()[:, 0]
    return F.cross_entropy(logits, targets, reduction="none"), rows


@torch.no_grad()
def mean_loss(model: Any, batches: Iterable[Batch]) -> float:
    """Mean loss per learnt token over all batches."""
    total, count = 0.0, 0
    for batch in batches:
        losses, _ = token_losses(model, batch)
        total += float(losses.double().sum())
        count += losses.numel()
    return total / max(count, 1)


@dataclass(frozen=True, slots=True)
class Kept:
    """Texts on which the model is to stay with the reference, and how much that weighs.

    `reference` gives its logits (m, vocabulary) at the learnt tokens of texts.
    """

    texts: Sequence[Encoded]
    weight: float
    reference: Callable[[Sequence[Encoded]], Tensor]


@dataclass(frozen=True, slots=True)
class Aims:
    """What one step asks of the model: facts to answer, and texts on which to stay as it was.

    The loss on `new` and `old` facts is summed and divided by the learnt tokens of `new`, so that a
    new fact counts the same however many old ones are rehearsed beside it. Each `Kept` adds its
    weight · KL(reference ‖ model) at `temperature`, averaged over its learnt tokens.
    """

    new: Sequence[Encoded]
    old: Sequence[Encoded] = ()
    kept: Sequence[Kept] = ()
    temperature: float = 1.0


def backward(
    model: Any, aims: Aims, max_tokens: int, pad: int, device: torch.device
) -> tuple[float, dict[str, float], int]:
    """Gradients of a step; the facts' loss per new token, each fact's own, `max_tokens`.

    When the device's memory is too small the forward passes are halved, from then on, and the
    step begins anew.
    """
    while True:
        try:
            loss, rows = _accumulate(model, aims, max_tokens, pad, device)
            for kept in aims.kept:
                _keep(model, kept, aims.temperature, max_tokens, pad, device)
            return loss, rows, max_tokens
        except torch.OutOfMemoryError:
            texts = chain(aims.new, aims.old, *(kept.texts for kept in aims.kept))
            longest = max(len(one.ids) for one in texts)
            if max_tokens <= longest:
                raise
            max_tokens = max(max_tokens // 2, longest)
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()


def _keep(
    model: Any,
    kept: Kept,
    temperature: float,
    max_tokens: int,
    pad: int,
    device: torch.device,
) -> None:
    total = sum(len(one.ids) - one.start for one in kept.texts)
    for part in buckets(kept.texts, max_tokens):
        with torch.no_grad():
            before = F.log_softmax(kept.reference(part) / temperature, dim=-1)
        logits, _ = learnt_logits(model, collate(part, pad).to(device))
        now = F.log_softmax(logits / temperature, dim=-1)
        divergence = F.kl_div(now, before, reduction="sum", log_target=True)
        # The square keeps the gradient's size (Hinton, Vinyals, Dean, arXiv 1503.02531).
        torch.autograd.backward(kept.weight * temperature**2 * divergence / total)


def _accumulate(
    model: Any, aims: Aims, max_tokens: int, pad: int, device: torch.device
) -> tuple[float, dict[str, float]]:
    total = sum(len(one.ids) - one.start for one in aims.new)
    loss, rows = 0.0, {}
    for group in buckets([*aims.new, *aims.old], max_tokens):
        batch = collate(group, pad).to(device)
        losses, row_of = token_losses(model, batch)
        torch.autograd.backward(losses.sum() / total)
        detached = losses.detach()
        loss += float(detached.sum()) / total
        sums = torch.zeros(len(group), device=device).index_add(0, row_of, detached)
        counts = torch.bincount(row_of, minlength=len(group)).clamp_min(1)
        means = (sums / counts).tolist()
        rows.update({key: mean for key, mean in zip(batch.keys, means, strict=True) if key})
    return loss, rows
