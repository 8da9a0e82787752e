"""What training is said to take of memory is what a run takes, part by part."""

from __future__ import annotations

import json
import random
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
from adapters.memory import Model, Training
from adapters.moments import input_owner
from adapters.passes import Passes
from adapters.plans import TrainPlan
from adapters.probe import Protection
from adapters.probe_size import STORED_WHOLE
from adapters.projection import Protected
from adapters.recipe import Recipe
from adapters.reference import record
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
TOKENS = 256
LENGTH = 32


class Run:
    """Steps of two passes each: one of facts, one of what is to stay as it is."""

    def __init__(
        self, config: dict[str, Any], dtype: torch.dtype, device: str, how: Training
    ) -> None:
        base = built(config, device, dtype)
        bases: dict[str, Tensor] = {}
        protected = {}
        for name, matrix in models.matrices(base).items():
            wide = matrix.in_features
            own = bases.setdefault(input_owner(name), basis(wide, round(SHARE * wide)))
            protected[name] = Protected(own, torch.zeros(matrix.out_features, 0))
        self.attached = attached(base, protected, how.rank)
        self.passes = Passes(base.device, 0, how.in_pass)
        self.recipe = Recipe()
        self.factors = [p for p in self.attached.model.parameters() if p.requires_grad]
        self.optimizer = self.recipe.optimizer(self.factors, TrainConfig(), 1e-3)
        draw = random.Random(0)
        half = how.in_pass // LENGTH
        texts = [
            Encoded(tuple(draw.randrange(config["vocab_size"]) for _ in range(LENGTH)), 1, f"{n}")
            for n in range(2 * half)
        ]
        model, entered = self.attached.model, self.attached.reference
        self.reference = record(
            model, entered, texts[half:], self.passes, base_hash="0", folder=None
        )
        kept = KLTerm(texts[half:], 1.0, self.reference.states)
        self.objective = Objective(texts[:half], kl_terms=[kept])

    @property
    def recorded(self) -> int:
        """Bytes of the recorded states."""
        return size([self.reference.kept.states, self.reference.kept.entropy])

    def step(self) -> None:
        self.recipe.gradients(self.attached.model, self.objective, self.passes)
        torch.nn.utils.clip_grad_norm_(self.factors, 1.0)
        self.recipe.update(self.attached.model, self.optimizer)


def basis(n: int, k: int) -> Tensor:
    """Random directions (n, k) as a probe holds them: of few inputs among all, in fp64."""
    small = n <= STORED_WHOLE
    kept = torch.randn(n, n if small else k, dtype=torch.float64 if small else torch.float32)
    return kept.div_(n**0.5)[:, :k]


def peak(config: dict[str, Any], dtype: torch.dtype, how: Training) -> tuple[int, int]:
    """The most bytes of tensors in a step, and those of the recorded states."""
    live = LiveBytes()
    with live:
        run = Run(config, dtype, "cpu", how)
        run.step()
        live.reset()
        run.step()
    return live.peak, run.recorded


def said(config: dict[str, Any], how: Training, states: int) -> int:
    """What is said of device and host together, with the states that there are."""
    model = counted(config)
    device, host = memory.on_device(model, how), memory.on_host(model, how)
    return device.total + host.total - device.recorded - host.recorded + states


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ("gpu", "llama"),
        ("gpu", "mistral"),
        ("gpu", "qwen2"),
        ("cpu", "llama"),
        ("cpu that multiplies in bf16", "llama"),
    ],
)
def test_a_run_takes_what_is_said(where: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights as on a GPU too, though on the CPU, where device and host are one memory."""
    rounded = where.endswith("bf16")
    monkeypatch.setattr(precision, "multiplies_bf16", lambda: rounded)
    device: memory.Device = "cuda" if where == "gpu" else "cpu"
    how = Training(32, device, SHARE, tokens=TOKENS, rounded=rounded)
    dtype = torch.bfloat16 if where == "gpu" else torch.float32
    taken = {}
    for layers in (2, 4):
        config = WIDTHS | {"model_type": kind, "num_hidden_layers": layers}
        found, states = peak(config, dtype, how)
        taken[layers] = found, said(config, how, states)
        assert found == pytest.approx(taken[layers][1], rel=0.1)
    (two, said_of_two), (four, said_of_four) = taken[2], taken[4]
    assert four - two == pytest.approx(said_of_four - said_of_two, rel=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("layers", [2, 4])
def test_a_gpu_allocates_what_is_said(layers: int) -> None:
    config = CONFIGS["Llama 3.1 8B"] | {"num_hidden_layers": layers}
    how = Training(RANK, "cuda", SHARE)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    run = Run(config, torch.bfloat16, "cuda", how)
    run.step()
    torch.cuda.reset_peak_memory_stats()
    run.step()
    taken = torch.cuda.max_memory_allocated() - before
    assert taken == pytest.approx(memory.on_device(counted(config), how).total, rel=0.1)
