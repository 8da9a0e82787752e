"""What training is said to take of memory is what a run takes, part by part."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from adapters import memory, models, precision, projection
from adapters.attach import NEW, Attached, attach
from adapters.config import TrainConfig
from adapters.examples import Encoded
from adapters.losses import KLTerm, Objective
from adapters.memory import Model, Parts, Training
from adapters.passes import Passes
from adapters.plans import TrainPlan
from adapters.probe import Protection
from adapters.projection import Protected
from adapters.recipe import Recipe
from adapters.reference import Reference, record
from policies.records import PlanKind
from tests.support.fitted import FACTS
from tests.support.live_bytes import LiveBytes

CONFIGS = json.loads((Path(__file__).parents[1] / "support" / "shapes.json").read_text())
RANK, SHARE = 128, 0.2


def counted(config: dict[str, Any]) -> Model:
    found = Model.of(config)
    assert found is not None
    return found


def built(config: dict[str, Any], device: str, dtype: torch.dtype) -> Any:
    """A model with random weights, or on "meta" without any."""
    keys = {key: value for key, value in config.items() if key != "source"}
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(keys.pop("model_type"), tie_word_embeddings=False, **keys),
            dtype=dtype,
        )
    return model.eval().requires_grad_(False)


def plan(rank: int) -> TrainPlan:
    return TrainPlan(
        kind=PlanKind.LEARN,
        rank=rank,
        seed=1,
        model_dir=Path("base"),
        base_hash="0" * 64,
        base_name="base",
        facts=FACTS,
        config=TrainConfig(),
        protection=Protection(kind="none"),
    )


def size(tensors: Any) -> int:
    """Bytes of tensors, each storage counted once."""
    found = {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors}
    return sum(found.values())


# --- at full width, without weights -----------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_the_base_the_factors_and_the_bases_are_those_that_are_made(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.attach.extract", lambda _: None)  # nothing is there to copy
    config = CONFIGS[name] | {"num_hidden_layers": 1}
    model, how = counted(config), Training(RANK, "cuda", SHARE)
    base = built(config, "meta", torch.bfloat16)
    parts = memory.on_device(model, how)
    assert parts.base == sum(p.numel() * p.element_size() for p in base.parameters())

    protected = {
        matrix: Protected(
            torch.empty(m.in_features, round(SHARE * m.in_features), device="meta"),
            torch.empty(m.out_features, 0, device="meta"),
        )
        for matrix, m in models.matrices(base).items()
    }
    trained = attached(base, protected).model
    factors = [p for p in trained.parameters() if p.requires_grad]
    assert {p.dtype for p in factors} == {torch.float32}
    assert memory.adapter_size(model, RANK) == sum(p.numel() for p in factors)
    maps = {
        id(variant.right): variant.right.matrix
        for layer in projection.lora_layers(trained, NEW).values()
        for variant in layer.lora_variant.values()
    }
    assert parts.protection == sum(m.numel() * m.element_size() for m in maps.values())
    assert len(maps) == 2, "gate and up share their input's"


def test_a_dense_matrix_of_bases_is_what_a_soft_form_takes() -> None:
    model = counted(CONFIGS["Llama 3.1 8B"])
    soft = memory.on_device(model, Training(RANK, "cuda", SHARE, soft=True)).protection
    assert soft == 32 * 4 * (2 * 4096**2 + 14336**2)
    assert memory.on_device(model, Training(RANK, "cuda")).protection == 0


# --- a run at a reduced depth -----------------------------------------------------------------


def attached(base: Any, protected: dict[str, Protected], rank: int = RANK) -> Attached:
    found = attach(base, plan(rank))
    projection.install(found.model, NEW, protected)
    return found


WIDTHS = {
    "model_type": "llama",
    "vocab_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 256,
    "intermediate_size": 1152,
}
TOKENS = 512


class Run:
    """Two steps of two passes each, on facts and on what is to stay as it is."""

    def __init__(self, config: dict[str, Any], dtype: torch.dtype, device: str, rank: int) -> None:
        self.base = built(config, device, dtype)
        self.device, self.rank, self.vocabulary = torch.device(device), rank, config["vocab_size"]

    def take(self, tokens: int, reset: Callable[[], None]) -> Reference:
        """The reference that was recorded; `reset` is called when the first step is over."""
        protected = {}
        bases: dict[int, Tensor] = {}
        for name, matrix in models.matrices(self.base).items():
            wide, high = matrix.in_features, matrix.out_features
            key = wide if "down" in name else hash(name.rsplit(".", 1)[0])
            if key not in bases or "down" in name:
                bases[key] = basis(wide, round(SHARE * wide))
            protected[name] = Protected(bases[key], torch.zeros(high, 0))
        bases.clear()
        found = attached(self.base, protected, self.rank)
        passes = Passes(self.device, 0, tokens)
        draw = random.Random(0)
        texts = [
            Encoded(tuple(draw.randrange(self.vocabulary) for _ in range(32)), 16, f"{n}")
            for n in range(2 * tokens // 32)
        ]
        facts, kept = texts[: len(texts) // 2], texts[len(texts) // 2 :]
        reference = record(
            found.model, found.reference, kept, passes, base_hash="0", folder=None
        )
        recipe = Recipe()
        factors = [p for p in found.model.parameters() if p.requires_grad]
        optimizer = recipe.optimizer(factors, TrainConfig(), 1e-3)
        objective = Objective(facts, kl_terms=[KLTerm(kept, 1.0, reference.logits)])
        for _ in range(2):
            recipe.gradients(found.model, objective, passes)
            torch.nn.utils.clip_grad_norm_(factors, 1.0)
            recipe.update(found.model, optimizer)
            reset()
        reset()
        recipe.gradients(found.model, objective, passes)
        return reference


def basis(n: int, k: int) -> Tensor:
    draw = torch.Generator().manual_seed(n)
    return torch.linalg.qr(torch.randn(n, k, generator=draw))[0].contiguous()


def recorded(reference: Reference) -> int:
    return size([reference.kept.states, reference.kept.entropy])


def peak(config: dict[str, Any], dtype: torch.dtype, rank: int) -> tuple[int, int]:
    """The most bytes of tensors in a step, and those of the recorded states."""
    live = LiveBytes()
    with live:
        run = Run(config, dtype, "cpu", rank)
        reference = run.take(TOKENS, live.reset)
    return live.peak, recorded(reference)


def said(config: dict[str, Any], how: Training, states: int) -> int:
    """What is said of the device and of the host together, with the states that there are."""
    model = counted(config)
    device, host = memory.on_device(model, how), memory.on_host(model, how)
    whole = device.total + host.total - device.recorded - host.recorded
    return whole + states


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("where", ["gpu", "cpu", "cpu that multiplies in bf16"])
def test_a_run_takes_what_is_said(
    kind: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights as on a GPU, though on the CPU, where device and host are one memory."""
    monkeypatch.setattr(precision, "multiplies_bf16", lambda: where.endswith("bf16"))
    how = Training(
        32,
        "cuda" if where == "gpu" else "cpu",
        SHARE,
        tokens=TOKENS,
        rounded=where.endswith("bf16"),
    )
    dtype = torch.bfloat16 if where == "gpu" else torch.float32
    taken = {}
    for layers in (2, 4):
        config = WIDTHS | {"model_type": kind, "num_hidden_layers": layers}
        found, states = peak(config, dtype, how.rank)
        taken[layers] = found, said(config, how, states)
    print(where, kind, {k: (a, b, round(b / a, 3)) for k, (a, b) in taken.items()})
    for found, expected in taken.values():
        assert found == pytest.approx(expected, rel=0.1)
    (two, for_two), (four, for_four) = taken[2], taken[4]
    assert four - two == pytest.approx(for_four - for_two, rel=0.1)
