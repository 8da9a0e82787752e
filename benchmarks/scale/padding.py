"""How many of the tokens of a step's passes are padding, with padded rows and with packed ones."""

from __future__ import annotations

from typing import Any, Final

import torch

from adapters import models
from adapters.config import TrainConfig
from adapters.examples import Encoded, collate, length
from adapters.packing import pack
from adapters.passes import CPU_TOKENS, GPU_TOKENS, Passes
from adapters.replay import draw, encode_pools
from adapters.template_prefix import constant_prefix, without
from benchmarks.scale import material

STEPS: Final = 50


def run() -> dict[str, Any]:
    """The shares on a CPU, and on a GPU with its larger batch preset and passes."""
    found: dict[str, Any] = {}
    for name, device, tokens in (("", "cpu", CPU_TOKENS), ("_gpu", "cuda", GPU_TOKENS)):
        config = TrainConfig().resolved(device, material.FACTS)
        before, after, attention = shares(config, tokens)
        found[f"padding_before{name}"] = before
        found[f"padding_after{name}"] = after
        found[f"padding_in_attention{name}"] = attention
    return found


def shares(config: TrainConfig, max_tokens: int) -> tuple[float, float, float]:
    """Of padded rows; of packed ones; and of what attention takes out of those."""
    plan = material.plan(config)
    tokenizer = models.load_tokenizer(plan.model_dir)
    pools, prefix = encode_pools(plan, tokenizer), constant_prefix(tokenizer)
    passes = Passes(torch.device("cpu"), int(tokenizer.pad_token_id), max_tokens, prefix)
    real = padded = packed = slots = 0
    for step in range(STEPS):
        drawn = draw(pools, config, plan.seed, step)
        texts = [*drawn.new, *drawn.old, *drawn.known, *drawn.reasoning]
        behind, others = passes.parted(texts, lambda one: one)
        for part in (others, [without(one, prefix) for one in behind]):
            real += sum(map(length, part))
            padded += sum(collate(group, passes.pad).ids.numel() for group in rows(part, passes))
            for group in passes.groups(part, length):
                row = pack(group)
                packed += row.ids.numel()
                slots += row.layout.slots
    before, after, attention = (round(1 - real / n, 4) for n in (padded, packed, slots))
    return before, after, attention


def rows(texts: list[Encoded], passes: Passes) -> list[list[Encoded]]:
    """The texts in groups of like length for padded passes."""
    return Passes(passes.device, passes.pad, passes.max_tokens, packed=False).groups(texts, length)
