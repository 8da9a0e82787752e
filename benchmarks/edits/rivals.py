"""Rivals that write into whole matrices instead of training a LoRA: LocFT-BF and AlphaEdit.

What they add to the weights is written as a LoRA all the same, of as high a rank as can be served,
so that every method is asked by the same code.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Final

import torch
from torch import Tensor, nn

from adapters import compose, lora, models
from adapters.examples import Encoded, PaddedBatch
from adapters.losses import learnt_logits
from adapters.packing import PackedBatch
from adapters.passes import Passes
from adapters.plans import TrainPlan, TrainReport
from adapters.replay import encode_pools
from benchmarks.learning import edits

WIDEST: Final = max(compose.SERVABLE_RANKS)
DEPTH: Final = 22 / 32
"""Where in the model LocFT-BF's authors edit Llama 3 8B; Qwen 2.5 7B at 6 of 28."""
BATCH: Final = 12
EPOCHS: Final = 25
LEARNT: Final = 1e-2
"""The loss per token below which their training ends."""
LOCFT_RATE: Final = 5e-4
VALUE_RATE: Final = 8.0
USUAL: Final = 0.008
"""The product's reference rate, of which a plan's rate is a multiple."""


def locft(plan: TrainPlan, *, out: Path, **_: object) -> TrainReport:
    """LocFT-BF (arXiv 2509.22072): one down projection fine-tuned by Adam, in mini-batches over
    epochs, on the new facts alone, each time in another of their paraphrases and forms."""
    began = time.monotonic()
    device = models.pick_device()
    model = _begun(plan, device)
    matrices = models.matrices(model, ("down_proj",))
    name = list(matrices)[round(DEPTH * len(matrices)) - 1]
    weight = matrices[name].weight.requires_grad_(True)
    before = weight.detach().clone()
    tokenizer = models.load_tokenizer(plan.model_dir)
    passes = Passes.of(plan.config, model, tokenizer)
    optimizer = torch.optim.Adam([weight], lr=LOCFT_RATE * plan.config.reference_rate / USUAL)
    rng = random.Random(f"locft:{plan.seed}")
    losses: list[float] = []
    for _epoch in range(EPOCHS):
        epoch = [
            _step(model, passes.batch(texts), optimizer)
            for texts in _in_turn(encode_pools(plan, tokenizer).new, rng)
        ]
        losses.append(fmean(epoch))
        if losses[-1] < LEARNT:
            break
    added = (weight.detach() - before).cpu()
    left, sigma, right = torch.linalg.svd(added, full_matrices=False)
    update = lora.Lora({name: (right, left * sigma)}, {name: 1.0})
    lora.write(out, _together(plan, update), plan.base_name)
    return TrainReport(
        kind=plan.kind,
        rank=min(WIDEST, len(sigma)),
        steps=len(losses),
        stopped_early=len(losses) < EPOCHS,
        facts=len(plan.facts),
        replayed=0,
        trainable=weight.numel(),
        seconds=time.monotonic() - began,
        loss_first=losses[0],
        loss_last=losses[-1],
        norm=float(added.norm()),
        leak=0.0,
        free=min(added.shape),
        admissible=None,
        unlearnt=(),
    )


def alphaedit(plan: TrainPlan, *, out: Path, **_: object) -> TrainReport:
    """AlphaEdit on top of what was edited before; the rate is that of its search for values."""
    rate = VALUE_RATE * plan.config.reference_rate / USUAL
    config = plan.config.model_copy(update={"learning_rate": rate})
    alone = plan.model_copy(update={"lineage": plan.start, "start": (), "config": config})
    report = edits.alphaedit(alone, out)
    lora.write(out, _together(plan, lora.read(out)), plan.base_name)
    return report


def _begun(plan: TrainPlan, device: torch.device) -> nn.Module:
    """The base with the earlier edits in its weights, in fp32."""
    model: nn.Module = models.load_base(plan.model_dir, device, torch.float32)
    earlier = compose.concatenate([lora.read(path) for path in plan.start])
    matrices = models.matrices(model, ("down_proj",))
    for name in earlier.factors:
        matrices[name].weight.data += earlier.delta(name).float().to(device)
    return model


def _step(
    model: nn.Module, batch: PackedBatch | PaddedBatch, optimizer: torch.optim.Optimizer
) -> float:
    logits, targets = learnt_logits(model, batch)
    loss: Tensor = torch.nn.functional.cross_entropy(logits, targets)
    if float(loss.detach()) >= LEARNT:
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return float(loss.detach())


def _in_turn(pool: Sequence[Sequence[Encoded]], rng: random.Random) -> Iterator[list[Encoded]]:
    """All facts once in mini-batches, each in one of its texts."""
    order = rng.sample(range(len(pool)), len(pool))
    for first in range(0, len(order), BATCH):
        yield [rng.choice(pool[n]) for n in order[first : first + BATCH]]


def _together(plan: TrainPlan, update: lora.Lora) -> lora.Lora:
    """What was added before and now, as one update of at most the widest rank."""
    total = compose.concatenate([*(lora.read(path) for path in plan.start), update])
    factors = {
        name: tuple(one.float() for one in compose.truncated(total, name, WIDEST))
        for name in total.factors
    }
    return lora.Lora(
        {name: (down, up) for name, (down, up) in factors.items()}, dict.fromkeys(factors, 1.0)
    )
