"""Products of matrices in bf16 while a model is trained on a processor that has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SDPA: Final = "sdpa"
INSTRUCTIONS: Final = ("avx512_bf16", "amx_bf16")


def multiplies_bf16() -> bool:
    """Whether the processor has instructions for products in bf16."""
    # Older versions of torch cannot say.
    found: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(found.get(name) for name in INSTRUCTIONS)


@contextmanager
def reduced(device: torch.device, model: nn.Module | None = None) -> Iterator[None]:
    """Within it products of matrices on a CPU that can are in bf16; weights and sums stay in fp32.

    Attention too stays in fp32, whose backward pass in bf16 takes a CPU seven times as long. The
    frozen matrices of `model` are rounded once for all of its passes. On other devices, and without
    such instructions, nothing changes.
    """
    if device.type != "cpu" or not multiplies_bf16():
        yield
        return
    ALL_ATTENTION_FUNCTIONS[SDPA] = _attend
    frozen = [] if model is None else _frozen(model)
    whole = [weight.data for weight in frozen]
    try:
        for weight in frozen:
            weight.data = weight.data.to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            yield
    finally:
        for weight, own in zip(frozen, whole, strict=True):
            weight.data = own
        del ALL_ATTENTION_FUNCTIONS[SDPA]


def _frozen(model: nn.Module) -> list[Tensor]:
    """Matrices that autocast would round again in every pass: those without a gradient."""
    return [
        one.weight
        for one in model.modules()
        if isinstance(one, nn.Linear) and not one.weight.requires_grad
    ]


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,  # what transformers gives every attention
) -> tuple[Tensor, None]:
    with torch.autocast("cpu", enabled=False):
        heads = (one.float() for one in (query, key, value))
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, *heads, attention_mask, **options
        )
    return found
