"""Texts packed into one row: each is learnt as it is alone, and nothing is padded."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from adapters import losses
from adapters.examples import Encoded, buckets, length
from adapters.packing import KINDS, pack, packable
from adapters.passes import Passes
from adapters.reference import record
from tests.support import tiny

CPU = torch.device("cpu")
WINDOW = 13
PREFIX = tuple(range(40, 52))


def build(kind: str) -> Any:
    """A tiny model in fp32 whose MLPs are trained; of two layers one or both see a window only."""
    if kind == "qwen3":
        config = Qwen3Config(**tiny.config("qwen2").to_dict(), head_dim=8)
    else:
        config = tiny.config(kind)
    config.sliding_window = WINDOW if kind != "llama" else None
    if kind.startswith("qwen"):
        config.layer_types = ["sliding_attention", "full_attention"]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for layer in model.get_decoder().layers:
        layer.mlp.requires_grad_(True)
    return model


def texts() -> list[Encoded]:
    """Fourteen texts of 3 to 60 tokens, every other one behind the prefix."""
    rng = random.Random(0)
    found = []
    for n in range(14):
        ids = [rng.randrange(256) for _ in range(rng.choice((3, 5, 9, 20, 48)))]
        start = rng.randrange(1, len(ids))
        before = PREFIX if n % 2 else ()
        found.append(Encoded((*before, *ids), start + len(before), f"t{n}"))
    return found


def step(model: Any, passes: Passes) -> tuple[Tensor, dict[str, float], dict[str, Tensor]]:
    """Loss, each fact's own loss and gradients of a step with facts and two KL terms."""
    found = texts()
    base = copy.deepcopy(model)
    for layer in base.get_decoder().layers:
        layer.mlp.up_proj.weight.data.mul_(1.5)
    recorded = record(
        model, lambda: nullcontext(base), found[5:], passes, base_hash="b", folder=None
    )
    terms = [
        losses.KLTerm(found[5:10], 3.0, recorded.states),
        losses.KLTerm(found[10:], 0.5, recorded.states),
    ]
    objective = losses.Objective(found[:3], found[3:5], terms, 2.0)
    loss, of_facts = losses.accumulate_gradients(model, objective, passes)
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return torch.tensor(loss), of_facts, grads


def require_same(found: Sequence[Any], expected: Sequence[Any]) -> None:
    """Loss and gradients to 1e-5 of their size."""
    assert float(abs(found[0] - expected[0]) / expected[0]) < 1e-5
    assert found[1] == pytest.approx(expected[1], rel=1e-5)
    assert set(found[2]) == set(expected[2])
    assert len(found[2]) == 6
    for name, grad in expected[2].items():
        assert float(grad.norm()) > 0.0
        assert float((found[2][name] - grad).norm() / grad.norm()) < 1e-5, name


@pytest.mark.parametrize("prefix", [(), PREFIX], ids=["whole", "prefix"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_is_unpacked(kind: str, prefix: tuple[int, ...]) -> None:
    """Each text in a pass of its own, several padded, several packed: the same step."""
    model = build(kind)
    assert packable(model)
    expected = step(model, Passes(CPU, 256, max_tokens=1, packed=False))
    for max_tokens in (64, 4096):
        require_same(step(model, Passes(CPU, 256, max_tokens, prefix)), expected)
    require_same(step(model, Passes(CPU, 256, 64, prefix, packed=False)), expected)


def test_a_packed_text_does_not_depend_on_its_neighbours() -> None:
    model, found = build("mistral"), texts()
    states, targets = losses.learnt_states(model, pack(found))
    place = 0
    for one in found:
        alone, learnt = losses.learnt_states(model, pack([one]))
        own = slice(place, place + len(learnt))
        torch.testing.assert_close(states[own], alone, rtol=1e-5, atol=1e-5)
        assert torch.equal(targets[own], learnt)
        assert tuple(learnt.tolist()) == one.ids[one.start :]
        place += len(learnt)
    assert place == len(states)


def test_packing_leaves_the_models_own_attention_in_place() -> None:
    model, ids = build("llama"), torch.tensor([[1, 2, 3, 4]])
    expected = model(input_ids=ids).logits
    with pytest.raises(IndexError):
        losses.learnt_states(model, pack([Encoded((1, 2, 10**6), 1)]))
    losses.learnt_states(model, pack(texts()))
    assert torch.equal(model(input_ids=ids).logits, expected)


def test_attention_pads_a_long_text_beside_short_ones_little() -> None:
    several = [Encoded(tuple(range(n)), 1) for n in (20, 25, 30, 1000, 22)]
    row = pack(several)
    assert row.ids.numel() == sum(map(length, several))
    assert row.layout.slots < 1.05 * row.ids.numel()


def test_a_pass_is_filled_to_its_size_without_padding() -> None:
    several = [Encoded(tuple(range(n)), 1) for n in (9, 2, 5, 30, 4, 3)]
    groups = buckets(several, 20, length, padded=False)
    assert [[length(one) for one in group] for group in groups] == [[2, 3, 4, 5], [9], [30]]


def test_other_kinds_of_model_are_padded() -> None:
    model = build("llama")
    model.config.model_type = "jamba"
    assert not packable(model)
    model = build("llama")
    model.config._attn_implementation = "eager"
    assert not packable(model)
