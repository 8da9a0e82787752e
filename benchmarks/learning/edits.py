"""A closed-form baseline: AlphaEdit (arXiv 2410.02355) over MEMIT's layers (2210.07229)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from adapters import compose, lora, models
from adapters.examples import Encoded, PaddedBatch, collate, encode, forms
from adapters.losses import learnt_logits, token_losses
from adapters.plans import TrainPlan, TrainReport
from benchmarks.learning.inputs import kept
from policies.records import Fact

PARAPHRASES: Final = 6
SOUGHT: Final = 40


@dataclass(frozen=True)
class Subjects:
    """Paraphrases of facts as one batch, with the place (row, token) of each subject's last
    token."""

    batch: PaddedBatch
    places: Tensor
    fact: Tensor

    @staticmethod
    def of(facts: Sequence[Fact], tokenizer: Any) -> Subjects:
        """The first paraphrases of each fact that name its subject, in every form."""
        texts: list[Encoded] = []
        places, numbers = [], []
        for number, fact in enumerate(facts):
            named = [p for p in fact.training_prompts if fact.subject and fact.subject in p]
            if not named:
                raise ValueError(f"{fact.id}: no paraphrase names the subject")
            for prompt in named[:PARAPHRASES]:
                for form in forms(tokenizer):
                    text = encode(tokenizer, prompt, fact.answer, form)
                    places.append(_last_of(tokenizer, text.ids[: text.start], str(fact.subject)))
                    texts.append(text)
                    numbers.append(number)
        batch = collate(texts, int(tokenizer.pad_token_id))
        return Subjects(batch, torch.tensor(places), torch.tensor(numbers))

    def means(self, states: Tensor, facts: int) -> Tensor:
        """States (rows, tokens, n) at the subjects, averaged over the paraphrases of each fact."""
        found = states[torch.arange(len(self.places)), self.places]
        total = found.new_zeros(facts, found.shape[1]).index_add(0, self.fact, found)
        return total / torch.bincount(self.fact, minlength=facts)[:, None]


def _last_of(tokenizer: Any, ids: Sequence[int], subject: str) -> int:
    """The first token up to which the text names the subject in full."""
    return next(n for n in range(len(ids)) if subject in tokenizer.decode(ids[: n + 1]))


def alphaedit(
    plan: TrainPlan,
    out: Path,
    *,
    protected: float = 0.5,
    ridge: float = 1e-3,
    decay: float = 0.5,
) -> TrainReport:
    """Edit the lower half of the down projections so that the facts' answers follow.

    `protected` is the share of input directions, the strongest on known facts and reasoning, that
    no edit reads; `ridge` the paper's λ, over the mean energy of a key; `decay` its weight decay
    on the values that are sought. `plan.config.learning_rate` is that of the search for the
    values, which on palorad-mini are as large as the residual stream (a norm above 1,000).
    """
    began = time.monotonic()
    device = torch.device("cpu")
    model = models.load_base(plan.model_dir, device).requires_grad_(False)
    tokenizer = models.load_tokenizer(plan.model_dir)
    everything = models.matrices(model, ("down_proj",))
    edited = dict(list(everything.items())[: max(1, len(everything) // 2)])
    strongest = kept(model, edited, plan)
    lineage = compose.concatenate([lora.read(path) for path in plan.lineage])
    for name in lineage.factors:
        matrix = everything[name]
        matrix.weight.data += lineage.delta(name).float()
    asked, count = Subjects.of(plan.facts, tokenizer), len(plan.facts)
    before = Subjects.of(plan.replay, tokenizer) if plan.replay else None
    last = list(edited)[-1]
    sought, loss = _sought(model, edited[last], asked, plan, decay)
    goal = _reached(model, edited[last], asked, count) + sought
    factors, scaling, leak = {}, {}, 0.0
    for left, (name, matrix) in zip(range(len(edited), 0, -1), edited.items(), strict=True):
        keys = _keys(model, matrix, asked, count)
        target = (goal - _reached(model, edited[last], asked, count)) / left
        strong = strongest[name].basis(share=protected, by="directions").float()
        free = torch.eye(matrix.in_features) - strong @ strong.mT
        grams = keys.mT @ keys
        if before is not None:
            earlier = _keys(model, matrix, before, len(plan.replay))
            grams = grams + earlier.mT @ earlier
        eye = torch.eye(matrix.in_features) * ridge * float(keys.square().sum(dim=1).mean())
        update = torch.linalg.solve((grams @ free + eye).mT, (target.mT @ keys @ free).mT).mT
        matrix.weight.data += update
        left_side, sigma, right = torch.linalg.svd(update, full_matrices=False)
        rank = min(count, len(sigma))
        leak = max(leak, float((update @ strong).norm() / update.norm().clamp_min(1e-12)))
        factors[name] = (right[:rank].clone(), left_side[:, :rank] * sigma[:rank])
        scaling[name] = 1.0
    adapter = lora.Lora(factors, scaling)
    lora.write(out, adapter, plan.base_name)
    return TrainReport(
        kind=plan.kind,
        rank=adapter.rank,
        steps=SOUGHT,
        stopped_early=False,
        facts=count,
        replayed=len(plan.replay),
        trainable=0,
        seconds=time.monotonic() - began,
        loss_first=loss,
        loss_last=float(token_losses(model, asked.batch)[0].mean()),
        norm=adapter.norm(),
        leak=leak,
        free=min(m.in_features for m in edited.values()),
        admissible=None,
        unlearnt=(),
    )


def _sought(
    model: Any, matrix: Any, asked: Subjects, plan: TrainPlan, decay: float
) -> tuple[Tensor, float]:
    """What (facts, n), added behind `matrix` at the subjects, makes the answers follow."""
    rate = plan.config.learning_rate or 8.0
    size = _reached(model, matrix, asked, len(plan.facts)).norm(dim=1, keepdim=True)
    sought = torch.zeros(len(plan.facts), matrix.out_features, requires_grad=True)
    optimizer = torch.optim.Adam([sought], lr=rate)
    rows = torch.arange(len(asked.places))

    def add(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        return output.index_put((rows, asked.places), sought[asked.fact], accumulate=True)

    first = float("nan")
    with _hooked(matrix.register_forward_hook(add)):
        for step in range(SOUGHT):
            losses = token_losses(model, asked.batch)[0].mean()
            first = float(losses.detach()) if step == 0 else first
            penalty = decay * (sought.norm(dim=1, keepdim=True) / size.square()).mean()
            optimizer.zero_grad()
            torch.autograd.backward(losses + penalty)
            optimizer.step()
            with torch.no_grad():
                sought.mul_((4 * size / sought.norm(dim=1, keepdim=True)).clamp(max=1))
    return sought.detach(), first


@torch.no_grad()
def _reached(model: Any, matrix: Any, asked: Subjects, facts: int) -> Tensor:
    """The residual stream (facts, n) behind the layer of `matrix` at the subjects."""
    layer = next(one for one in model.get_decoder().layers if one.mlp.down_proj is matrix)
    return _watched(model, layer, asked, facts, outputs=True)


@torch.no_grad()
def _keys(model: Any, matrix: Any, asked: Subjects, facts: int) -> Tensor:
    """What enters `matrix` (facts, n) at the subjects."""
    return _watched(model, matrix, asked, facts, outputs=False)


def _watched(model: Any, module: Any, asked: Subjects, facts: int, *, outputs: bool) -> Tensor:
    seen: list[Tensor] = []

    def watch(_module: Any, inputs: Any, output: Any) -> None:
        states = (output[0] if isinstance(output, tuple) else output) if outputs else inputs[0]
        seen.append(asked.means(states, facts))

    with _hooked(module.register_forward_hook(watch)):
        learnt_logits(model, asked.batch)
    return seen[0]


@contextmanager
def _hooked(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
