"""A base in bf16: what is saved is exactly in the free subspace, and is what was trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from adapters import models, projection
from adapters.attach import NEW, attach
from adapters.projection import Protected
from adapters.subspace import orthonormal
from tests.adapters.test_memory import plan
from tests.support import tiny

WIDE = 1152
IDS = torch.arange(24).view(2, -1)


@pytest.fixture
def model() -> Any:
    """A tiny base in bf16 and a random adapter, of which wide inputs are protected."""
    torch.manual_seed(0)
    config = tiny.config("llama", hidden=64, intermediate=WIDE)
    base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    protected = guards(base)
    attached = attach(base.requires_grad_(False), plan(rank=8))
    projection.install(attached.model, NEW, protected)
    for name, parameter in attached.model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return attached.model


def guards(base: Any) -> dict[str, Protected]:
    return {
        name: Protected(
            orthonormal(torch.randn(m.in_features, m.in_features // 5)).float(),
            torch.zeros(m.out_features, 0),
        )
        for name, m in models.matrices(base).items()
    }


def saved(model: Any) -> dict[str, tuple[Tensor, Tensor]]:
    return {
        name: (layer.lora_A[NEW].weight.detach(), layer.lora_B[NEW].weight.detach())
        for name, layer in projection.lora_layers(model, NEW).items()
    }


@torch.no_grad()
def test_bases_in_half_the_precision_leave_what_is_saved_exactly_free(model: Any) -> None:
    layers = projection.lora_layers(model, NEW)
    wide = {n: x.lora_variant[NEW].right.matrix for n, x in layers.items() if "down" in n}
    assert {one.dtype for one in wide.values()} == {torch.bfloat16}
    bound = {
        name: Protected(x.lora_variant[NEW].guard.inputs, x.lora_variant[NEW].guard.outputs)
        for name, x in layers.items()
    }
    on_the_way = {n: x.lora_variant[NEW].factors(x, NEW) for n, x in layers.items()}
    assert 1e-4 < projection.worst_leak(on_the_way, bound) < 5e-3
    projection.fold_into_weights(model, NEW)
    assert projection.worst_leak(saved(model), bound) < 1e-6


@torch.no_grad()
def test_the_saved_adapter_says_what_the_trained_one_said(model: Any) -> None:
    with projection.shared(model, NEW, 48):
        trained = model(input_ids=IDS).logits.float()
    with model.disable_adapter():
        base = model(input_ids=IDS).logits.float()
    projection.fold_into_weights(model, NEW)
    plain = model(input_ids=IDS).logits.float()
    update = float((plain - base).norm())
    assert update > 0.1 * float(base.norm())
    assert float((trained - plain).norm()) < 0.05 * update


def test_inputs_are_kept_once_and_as_they_are(model: Any) -> None:
    """PEFT alone would keep them in fp32, a copy for the gate and another for the up projection."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    model.enable_input_require_grads()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        model(input_ids=IDS).logits.float().sum().backward()
    wide = (*IDS.shape, WIDE)
    inner = [one for one in kept.values() if one.numel() == IDS.numel() * WIDE]
    assert {one.shape for one in inner} <= {wide, (IDS.numel(), WIDE)}
    assert {one.dtype for one in inner} == {torch.bfloat16}
    assert len(inner) == 2 * 4, "of a layer: gate, its activation, up, and their product"
    for layer in projection.lora_layers(model, NEW).values():
        gradient = layer.lora_A[NEW].weight.grad
        assert gradient is not None
        assert gradient.dtype == torch.float32
        assert bool(gradient.any())
