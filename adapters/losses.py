"""Next-token loss at the learnt positions only, for training and for measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.examples import IGNORED, Batch, Encoded, buckets, collate, length


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
    new fact counts the same however many old ones are replayed beside it. Each `Kept` adds its
    weight · KL(reference ‖ model) at `temperature`, averaged over its learnt tokens.
    """

    new: Sequence[Encoded]
    old: Sequence[Encoded] = ()
    kept: Sequence[Kept] = ()
    temperature: float = 1.0


def backward(
    model: Any,
    aims: Aims,
    max_tokens: int,
    pad: int,
    device: torch.device,
    around: Callable[[int], AbstractContextManager[None]] | None = None,
) -> tuple[float, dict[str, float], int]:
    """Gradients of a step; the facts' loss per new token, each fact's own, `max_tokens`.

    `around` is entered, with their number of tokens, for all its passes together. When the device's
    memory is too small the forward passes are halved, from then on, and the step retrains from
    scratch."""
    texts = [*aims.new, *aims.old, *chain.from_iterable(kept.texts for kept in aims.kept)]
    tokens = sum(len(one.ids) for one in texts)
    while True:
        try:
            with around(tokens) if around else nullcontext():
                loss, rows = _accumulate(model, aims, max_tokens, pad, device)
            return loss, rows, max_tokens
        except torch.OutOfMemoryError:
            longest = max(len(one.ids) for one in texts)
            if max_tokens <= longest:
                raise
            max_tokens = max(max_tokens // 2, longest)
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()


def _accumulate(
    model: Any, aims: Aims, max_tokens: int, pad: int, device: torch.device
) -> tuple[float, dict[str, float]]:
    total = _learnt(aims.new)
    loss, rows = 0.0, {}
    asked: list[tuple[Encoded, Kept | None]] = [(one, None) for one in (*aims.new, *aims.old)]
    asked += [(one, kept) for kept in aims.kept for one in kept.texts]
    for group in buckets(asked, max_tokens, lambda one: length(one[0])):
        facts = [one for one, kept in group if kept is None]
        parts = [(kept, [one for one, its in group if its is kept]) for kept in aims.kept]
        parts = [(kept, held) for kept, held in parts if held]
        said = [kept.reference(held) for kept, held in parts]
        texts = [*facts, *chain.from_iterable(held for _, held in parts)]
        batch = collate(texts, pad).to(device)
        logits, targets = learnt_logits(model, batch)
        sizes = [_learnt(facts), *(_learnt(held) for _, held in parts)]
        answers, *others = torch.split(logits, sizes)
        losses = F.cross_entropy(answers, targets[: sizes[0]], reduction="none")
        value = losses.sum() / total
        for (kept, _), before, now in zip(parts, said, others, strict=True):
            share = kept.weight / _learnt(kept.texts)
            value = value + share * _divergence(before, now, aims.temperature)
        torch.autograd.backward(value)
        for fact, mean in zip(facts, _means(losses.detach(), facts), strict=True):
            loss += mean * _learnt([fact]) / total
            if fact.key:
                rows[fact.key] = mean
    return loss, rows


def _means(losses: Tensor, facts: Sequence[Encoded]) -> list[float]:
    """Mean loss of each fact's learnt tokens."""
    counts = torch.tensor([_learnt([fact]) for fact in facts], dtype=torch.long)
    places = torch.arange(len(facts)).repeat_interleave(counts).to(losses.device)
    sums = torch.zeros(len(facts), device=losses.device).index_add(0, places, losses)
    means: list[float] = (sums.cpu() / counts).tolist()
    return means


def _learnt(texts: Iterable[Encoded]) -> int:
    return sum(len(one.ids) - one.start for one in texts)


def _divergence(reference: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """KL(reference ‖ model), summed over all tokens, both at a temperature.

    Its square keeps the gradient's size (Hinton, Vinyals, Dean, arXiv 1503.02531).
    """
    before = F.log_softmax(reference / temperature, dim=-1)
    now = F.log_softmax(logits / temperature, dim=-1)
    return temperature**2 * F.kl_div(now, before, reduction="sum", log_target=True)
