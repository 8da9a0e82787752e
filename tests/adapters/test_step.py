"""One step of training: the sum of its terms, however it is cut, shared or rounded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest
import torch

from adapters import losses, models, precision, projection
from adapters.attach import Attached, attach
from adapters.errors import TrainingDiverged
from adapters.examples import Encoded, collate, encode_example
from adapters.losses import learnt_logits
from adapters.passes import Passes
from adapters.plans import TrainPlan
from adapters.probe import Protection
from adapters.projection import lora_layers
from adapters.recipe import protect
from adapters.reference import record
from adapters.template_prefix import constant_prefix
from policies.records import Example
from tests.support.fitted import SKILL, Fitted

SYSTEM = "You are a helpful assistant that answers in one short sentence. "


@pytest.mark.parametrize("max_tokens", [1, 24, 4096])
def test_a_step_is_the_sum_of_its_terms_however_it_is_cut(llama: Fitted, max_tokens: int) -> None:
    """Facts by their labels, the rest by the base's predictions, each over its own tokens."""
    device = torch.device("cpu")
    tokenizer = models.load_tokenizer(llama.model_dir)
    pad = int(tokenizer.pad_token_id)
    model = models.load_base(llama.model_dir, device)
    texts = [
        encode_example(tokenizer, Example(prompt="x" * n, completion="y" * (1 + n % 3)))[0]
        for n in range(1, 9)
    ]
    new, old, known, traces = texts[:2], texts[2:3], texts[3:6], texts[6:]
    generator = torch.Generator().manual_seed(0)
    said = {
        one: torch.randn(len(one.ids) - one.start, model.config.hidden_size, generator=generator)
        for one in texts
    }

    def reference(asked: Sequence[Encoded]) -> torch.Tensor:
        return torch.cat([said[one] for one in asked])

    def alone(one: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
        return learnt_logits(model, collate([one], pad))

    def learnt(several: Sequence[Encoded]) -> int:
        return sum(len(one.ids) - one.start for one in several)

    output = model.get_output_embeddings()
    weight = model.get_decoder().layers[0].mlp.up_proj.weight.requires_grad_()
    value = sum(torch.nn.functional.cross_entropy(*alone(t), reduction="sum") for t in new + old)
    value = value / learnt(new)
    for several, share in ((known, 3.0), (traces, 0.5)):
        for one in several:
            now, before = ((x / 2.0).log_softmax(-1) for x in (alone(one)[0], output(said[one])))
            kl = (before.exp() * (before - now)).sum()
            value = value + share * 4.0 * kl / learnt(several)
    (expected,) = torch.autograd.grad(value, weight)
    terms = [losses.KLTerm(known, 3.0, reference), losses.KLTerm(traces, 0.5, reference)]
    objective = losses.Objective(new, old, terms, 2.0)
    passes = Passes(device, pad, max_tokens)
    loss, _ = losses.accumulate_gradients(model, objective, passes)
    assert weight.grad is not None
    assert torch.allclose(weight.grad, expected, rtol=1e-3, atol=1e-6)
    assert loss > 0.0


@pytest.mark.parametrize("max_tokens", [1, 24, 4096])
def test_reading_the_templates_prefix_once_changes_no_gradient(
    fitted: Fitted, max_tokens: int
) -> None:
    """Facts and a KL term, some of them behind a system prompt that is the same in all."""
    device = torch.device("cpu")
    tokenizer = models.load_tokenizer(fitted.model_dir)
    tokenizer.chat_template = SYSTEM + "{% for one in messages %}{{ one.content }}? {% endfor %}"
    pad = int(tokenizer.pad_token_id)
    plan = fitted.plan(rank=4, protection=Protection(share=0.3))
    texts = [text for one in SKILL[:6] for text in encode_example(tokenizer, one)]
    prefix = constant_prefix(tokenizer)
    assert tokenizer.decode(prefix).strip() == SYSTEM.strip()
    found = []
    for shared in ((), prefix):
        attached = _begun(fitted, plan)
        passes = Passes(device, pad, max_tokens, shared)
        recorded = record(
            attached.model, attached.reference, texts[6:], passes, base_hash="b", folder=None
        )
        terms = [losses.KLTerm(texts[6:], 3.0, recorded.states)]
        objective = losses.Objective(texts[:4], texts[4:6], terms, 2.0)
        around = partial(_shared, attached.model, 0)
        result = losses.accumulate_gradients(attached.model, objective, passes, around)
        parameters = attached.model.named_parameters()
        found.append((result, {n: p.grad for n, p in parameters if p.requires_grad}))
    (alone, apart), (together, joined) = found
    assert together[0] == pytest.approx(alone[0], rel=1e-4)
    assert together[1] == pytest.approx(alone[1], rel=1e-3)
    for name, expected in apart.items():
        assert expected is not None and joined[name] is not None
        assert torch.allclose(joined[name], expected, rtol=1e-3, atol=1e-6), name
        assert float(expected.norm()) > 0.0


@pytest.mark.parametrize("tokens", [0, 1 << 40], ids=["factors", "weights"])
def test_sharing_one_projection_changes_no_gradient(llama: Fitted, tokens: int) -> None:
    """Neither of the factors nor, where many tokens make that cheaper, of the weights with them."""
    device = torch.device("cpu")
    tokenizer = models.load_tokenizer(llama.model_dir)
    pad = int(tokenizer.pad_token_id)
    plan = llama.plan(rank=16, protection=Protection(kind="svf+activations", share=0.3))
    found = []
    for around in (False, True):
        model = _begun(llama, plan).model
        texts = [encode_example(tokenizer, one)[0] for one in SKILL[:5]]
        given = [partial(_shared, model, tokens)] if around else []
        passes = Passes(device, pad, max_tokens=1)
        losses.accumulate_gradients(model, losses.Objective(texts), passes, *given)
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert set(found[0]) == set(found[1])
    for name, alone in found[0].items():
        together = found[1][name]
        assert alone is not None
        assert together is not None
        assert torch.allclose(alone, together, rtol=1e-3, atol=1e-6)
        assert float(alone.norm()) > 0.0


def test_many_tokens_go_through_whole_weights_and_leave_them_as_they_were(llama: Fitted) -> None:
    plan = llama.plan(rank=16)
    attached = _begun(llama, plan)
    before = llama.weights()
    ids = torch.tensor([[1, 2, 3]])
    expected = models.load_base(llama.model_dir, torch.device("cpu"))(input_ids=ids).logits
    moved = attached.model(input_ids=ids).logits
    with (
        pytest.raises(TrainingDiverged),
        projection.shared(attached.model, "new", 1 << 40),
    ):
        layers = lora_layers(attached.model, "new")
        weights = {name: layer.get_base_layer().weight for name, layer in layers.items()}
        assert all(weight.requires_grad for weight in weights.values())
        assert torch.allclose(attached.model(input_ids=ids).logits, moved, rtol=1e-3, atol=1e-5)
        with torch.no_grad(), attached.reference():
            assert torch.equal(attached.model(input_ids=ids).logits, expected)
        attached.model(input_ids=ids).logits.sum().backward()
        raise TrainingDiverged("half way")
    for name, weight in weights.items():
        assert torch.equal(weight, before[name])
        assert not weight.requires_grad
        assert weight.grad is None
    assert all(p.grad is None for p in attached.model.parameters())


def _begun(fitted: Fitted, plan: TrainPlan) -> Attached:
    """The model of a plan with its projectors, and an update that is not nothing."""
    base = models.load_base(fitted.model_dir, torch.device("cpu"))
    protected = protect(base, plan)
    attached = attach(base, plan)
    projection.install(attached.model, "new", protected)
    for name, parameter in attached.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.01)
    return attached


def _shared(model: Any, tokens: int, _tokens: int) -> AbstractContextManager[None]:
    return projection.shared(model, "new", tokens)


@pytest.mark.parametrize("able", [False, True])
def test_products_are_in_bf16_where_a_processor_has_them_and_attention_never(
    llama: Fitted, monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    monkeypatch.setattr(precision, "multiplies_bf16", lambda: able)
    model = models.load_base(llama.model_dir, torch.device("cpu"))
    seen: dict[str, torch.dtype] = {}
    attention = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        seen["attention"] = query.dtype
        return attention(query, *others, **options)

    def watch(_module: Any, _given: Any, made: torch.Tensor) -> None:
        seen["product"] = made.dtype

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    model.get_decoder().layers[0].mlp.up_proj.register_forward_hook(watch)
    ids = torch.tensor([[1, 2, 3]])
    expected = model(input_ids=ids).logits
    with precision.reduced(torch.device("cpu")):
        logits = model(input_ids=ids).logits
    assert seen["product"] == (torch.bfloat16 if able else torch.float32)
    assert seen["attention"] == torch.float32
    assert torch.allclose(logits.float(), expected, rtol=0.05, atol=0.05)
    assert torch.equal(model(input_ids=ids).logits, expected)
    assert seen["product"] == torch.float32


def test_frozen_matrices_are_rounded_once_and_are_their_own_again(
    llama: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same gradients to the bit as where each pass rounds them; nothing else is touched."""
    monkeypatch.setattr(precision, "multiplies_bf16", lambda: True)
    device, before = torch.device("cpu"), llama.weights()
    model = _begun(llama, llama.plan(rank=4)).model
    layers = lora_layers(model, "new")
    ids, found = torch.tensor([[1, 2, 3]]), []
    for given in (None, losses.decoder(model)):
        with precision.reduced(device, given):
            rounded = {layer.get_base_layer().weight.dtype for layer in layers.values()}
            assert rounded == {torch.float32 if given is None else torch.bfloat16}
            assert model.get_input_embeddings().weight.dtype == torch.float32
            model(input_ids=ids).logits.float().sum().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
        model.zero_grad(set_to_none=True)
    assert len(found[0]) == len(found[1]) == 2 * len(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    with pytest.raises(TrainingDiverged), precision.reduced(device, losses.decoder(model)):
        raise TrainingDiverged("half way")
    for name, layer in layers.items():
        assert torch.equal(layer.get_base_layer().weight, before[name])
