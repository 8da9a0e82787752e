"""Next-token loss at the learnt positions only, for training and for measuring."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = plain.get_decoder()(input_ids=batch.ids, use_cache=False).last_hidden_state
    targets = batch.labels[:, 1:]
    learnt = targets != IGNORED
    logits: Tensor = plain.get_output_embeddings()(hidden[:, :-1][learnt])
    return logits.float(), targets[learnt]


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


def backward(
    model: Any, chosen: Sequence[Encoded], max_tokens: int, pad: int, device: torch.device
) -> tuple[float, dict[str, float], int]:
    """Gradients of the mean loss per learnt token; the loss, each fact's own, and `max_tokens`.

    When the device's memory is too small the forward passes are halved, from then on, and the
    step begins anew.
    """
    while True:
        try:
            return (*_accumulate(model, chosen, max_tokens, pad, device), max_tokens)
        except torch.OutOfMemoryError:
            longest = max(len(one.ids) for one in chosen)
            if max_tokens <= longest:
                raise
            max_tokens = max(max_tokens // 2, longest)
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()


def _accumulate(
    model: Any, chosen: Sequence[Encoded], max_tokens: int, pad: int, device: torch.device
) -> tuple[float, dict[str, float]]:
    total = sum(len(one.ids) - one.start for one in chosen)
    loss, rows = 0.0, {}
    for group in buckets(chosen, max_tokens):
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
