"""Next-token loss and KL terms at the learnt positions only, for training and measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.examples import IGNORED, Encoded, PaddedBatch, length
from adapters.lm_head import Head, head_of
from adapters.packing import PackedBatch, last_hidden
from adapters.passes import Passes
from adapters.template_prefix import ReadPrefix, shared, without


def learnt_logits(
    model: Any, batch: PackedBatch | PaddedBatch, prefix: ReadPrefix | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (m, vocabulary) in fp32 and targets (m,) of the m learnt tokens of a batch.

    The output matrix is applied to those positions alone, which for short answers saves most of
    its cost.
    """
    states, targets = learnt_states(model, batch, prefix)
    return to_logits(model, states), targets


def learnt_states(
    model: Any, batch: PackedBatch | PaddedBatch, prefix: ReadPrefix | None = None
) -> tuple[Tensor, Tensor]:
    """Last hidden states (m, hidden size) before the m learnt tokens, and those tokens (m,).

    The texts of the batch follow `prefix` where one is given.
    """
    if isinstance(batch, PackedBatch):
        return last_hidden(decoder(model), batch, prefix)[batch.before], batch.targets
    past = None if prefix is None else prefix.cache(len(batch.ids))
    hidden = decoder(model)(
        input_ids=batch.ids, past_key_values=past, use_cache=past is not None
    ).last_hidden_state
    targets = batch.labels[:, 1:]
    learnt = targets != IGNORED
    return hidden[:, :-1][learnt], targets[learnt]


def to_logits(model: Any, states: Tensor) -> Tensor:
    """Logits (m, vocabulary) in fp32 of hidden states, by the output matrix; it is not trained."""
    logits: Tensor = _plain(model).get_output_embeddings()(states)
    return logits.float()


def head(model: Any) -> Head:
    """Losses of hidden states by the model's output matrix."""
    return head_of(_plain(model))


def decoder(model: Any) -> Any:
    """The model without its output matrix."""
    return _plain(model).get_decoder()


def _plain(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def token_losses(model: Any, batch: PaddedBatch) -> tuple[Tensor, Tensor]:
    """Loss of each learnt token (m,) and the row (m,) that it belongs to."""
    logits, targets = learnt_logits(model, batch)
    rows = (batch.labels[:, 1:] != IGNORED).nonzero()[:, 0]
    return F.cross_entropy(logits, targets, reduction="none"), rows


@torch.no_grad()
def mean_loss(model: Any, batches: Iterable[PaddedBatch]) -> float:
    """Mean loss per learnt token over all batches."""
    total, count = 0.0, 0
    for batch in batches:
        losses, _ = token_losses(model, batch)
        total += float(losses.double().sum())
        count += losses.numel()
    return total / max(count, 1)


@dataclass(frozen=True, slots=True)
class KLTerm:
    """Texts on which the model is to stay with the base, and how much that weighs.

    `reference` gives the base's last hidden states (m, hidden size) before the learnt tokens of
    texts.
    """

    texts: Sequence[Encoded]
    weight: float
    reference: Callable[[Sequence[Encoded]], Tensor]


@dataclass(frozen=True, slots=True)
class Objective:
    """What one step minimises, over facts and over texts on which nothing is to change.

    The loss on `new` and `replayed` facts is summed and divided by the learnt tokens of `new`, so
    that a new fact counts the same however many others are replayed beside it. Each KL term adds
    its weight · KL(base ‖ model) at `temperature`, averaged over its learnt tokens.

    `new_tokens` takes the place of the learnt tokens of `new` where these are a part of a step's.
    """

    new: Sequence[Encoded]
    replayed: Sequence[Encoded] = ()
    kl_terms: Sequence[KLTerm] = ()
    temperature: float = 1.0
    new_tokens: int | None = None


_Part = tuple[Encoded, KLTerm | None]
"""A text of a step, and the KL term that it belongs to; None for facts."""


def accumulate_gradients(
    model: Any,
    objective: Objective,
    passes: Passes,
    around: Callable[[int], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> tuple[float, dict[str, float]]:
    """Add the gradients of a step; the facts' loss per new token, and each fact's own.

    `around` is entered, with their number of tokens, for all its passes together. Where the
    device's memory is too small the passes are halved from then on and the step is repeated.
    """
    texts = [*objective.new, *objective.replayed]
    texts += chain.from_iterable(term.texts for term in objective.kl_terms)
    tokens = sum(len(one.ids) for one in texts)
    tokens -= len(passes.prefix) * len(passes.parted(texts, lambda one: one)[0])
    while True:
        try:
            with around(tokens):
                return _accumulate(model, objective, passes)
        except torch.OutOfMemoryError:
            if not passes.halve(max(len(one.ids) for one in texts)):
                raise
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()


def _accumulate(model: Any, objective: Objective, passes: Passes) -> tuple[float, dict[str, float]]:
    texts: list[_Part] = [(one, None) for one in (*objective.new, *objective.replayed)]
    texts += [(one, term) for term in objective.kl_terms for one in term.texts]
    with_prefix, others = passes.parted(texts, lambda one: one[0])
    loss, of_facts = _pass_through(model, objective, passes, others, None)
    if with_prefix:
        with shared(decoder(model), passes.prefix, passes.device) as prefix:
            more, of_more = _pass_through(model, objective, passes, with_prefix, prefix)
        loss, of_facts = loss + more, of_facts | of_more
    return loss, of_facts


def _pass_through(
    model: Any,
    objective: Objective,
    passes: Passes,
    texts: Sequence[_Part],
    prefix: ReadPrefix | None,
) -> tuple[float, dict[str, float]]:
    """Add the gradients of these texts of a step, all of which follow `prefix` if there is one."""
    total, output = objective.new_tokens or _learnt(objective.new), head(model)
    loss, of_facts = 0.0, {}
    cut = () if prefix is None else passes.prefix
    for group in passes.groups(texts, lambda one: length(one[0]) - len(cut)):
        facts = [one for one, term in group if term is None]
        parts = [(term, [one for one, its in group if its is term]) for term in objective.kl_terms]
        parts = [(term, kept) for term, kept in parts if kept]
        before = [term.reference(kept) for term, kept in parts]
        read = [*facts, *chain.from_iterable(kept for _, kept in parts)]
        batch = passes.batch([without(one, cut) for one in read] if cut else read)
        states, targets = learnt_states(model, batch, prefix)
        sizes = [_learnt(facts), *(_learnt(kept) for _, kept in parts)]
        answers, *now = torch.split(states, sizes)
        losses = output.cross_entropy(answers, targets[: sizes[0]])
        value = losses.sum() / total
        for (term, _), of_base, of_model in zip(parts, before, now, strict=True):
            share = term.weight / _learnt(term.texts)
            apart = output.kl_divergence(of_base, of_model, objective.temperature)
            value = value + share * apart.sum()
        torch.autograd.backward(value)
        for fact, mean in zip(facts, _means(losses.detach(), facts), strict=True):
            loss += mean * _learnt([fact]) / total
            if fact.key:
                of_facts[fact.key] = mean
    return loss, of_facts


def _means(losses: Tensor, facts: Sequence[Encoded]) -> list[float]:
    """Mean loss of each fact's learnt tokens."""
    counts = torch.tensor([_learnt([fact]) for fact in facts], dtype=torch.long)
    places = torch.arange(len(facts)).repeat_interleave(counts).to(losses.device)
    sums = torch.zeros(len(facts), device=losses.device).index_add(0, places, losses)
    means: list[float] = (sums.cpu() / counts).tolist()
    return means


def _learnt(texts: Iterable[Encoded]) -> int:
    return sum(len(one.ids) - one.start for one in texts)
