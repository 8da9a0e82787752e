"""Next-token loss at the learnt positions only, for training and for measuring."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.examples import IGNORED, Batch


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
