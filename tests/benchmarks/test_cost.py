"""The cost model agrees with real models, with torch's own count, and with what was published."""

from __future__ import annotations

import json
import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from adapters import models, projection
from adapters.attach import NEW, attach
from adapters.config import TrainConfig
from adapters.examples import Encoded
from adapters.losses import Objective, accumulate_gradients
from adapters.passes import Passes
from adapters.plans import TrainPlan
from adapters.probe import Protection
from adapters.recipe import fast_passes
from adapters.schedule import steps_needed
from benchmarks.provenance import ROOT
from benchmarks.scale import cost, gate_cost
from benchmarks.scale.cost import H100, LLAMA_8B, LLAMA_70B, QWEN_7B, SMOL, Model, Step
from policies.records import Fact, PlanKind
from tests.support import tiny

RANK = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("base"), hidden=128, layers=3, intermediate=256)


@pytest.mark.parametrize(
    ("model", "published"),
    [(LLAMA_8B, 8.03e9), (LLAMA_70B, 70.6e9), (QWEN_7B, 7.62e9), (SMOL, 134.5e6)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_sizes_are_those_that_are_published(model: cost.Model, published: float) -> None:
    assert model.parameters == pytest.approx(published, rel=1e-3)


def test_weights_and_factors_are_counted_as_a_real_model_has_them(base: Path) -> None:
    real = models.load_base(base, torch.device("cpu"))
    counted = Model.of(real.config.to_dict())
    norms = sum(p.numel() for name, p in real.named_parameters() if "norm" in name)
    assert counted.parameters + norms == sum(p.numel() for p in real.parameters())
    model = attach(real, _plan(base)).model
    trained = [p for p in model.parameters() if p.requires_grad]
    assert counted.trained(RANK) == sum(p.numel() for p in trained)


def test_torch_counts_the_same_flops_in_a_step(base: Path) -> None:
    length, texts, learnt = 40, 12, 10
    device = torch.device("cpu")
    model = attach(models.load_base(base, device), _plan(base)).model
    projection.install(model, NEW, {})
    read = [Encoded(tuple(range(n, n + length)), length - learnt, f"f{n}") for n in range(texts)]
    with FlopCounterMode(display=False) as counter:
        accumulate_gradients(
            model, Objective(read), Passes(device, 0, 512), partial(fast_passes, model, device)
        )
    step = Step(texts, texts * length, texts * length, texts * learnt, 0)
    # Torch does not count the attention of a CPU.
    expected = cost.step_flops(Model.of(model.config.to_dict()), step, RANK, length=0)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


def test_the_published_speed_of_lora_is_what_four_flops_a_weight_and_token_say() -> None:
    assert 12_473 * 4 * LLAMA_8B.parameters == pytest.approx(402e12, rel=0.01)


def test_a_probe_takes_as_many_passes_as_the_documents_say() -> None:
    assert [cost.probe_of(model, H100).passes for model in (LLAMA_8B, LLAMA_70B)] == [8, 80]


def test_a_batch_has_the_steps_of_the_product() -> None:
    config = TrainConfig().resolved("cuda", 36)
    found = cost.batch_of(LLAMA_8B, H100, 36, 360)
    assert found.steps == steps_needed(config, 36, 360)
    assert cost.step_of(config, 36, 360).texts == 36 + 144 + 192 + 12


def test_a_base_without_room_takes_for_ever_and_more_gpus_hold_it() -> None:
    step = cost.step_of(TrainConfig().resolved("cuda", 36), 36, 360)
    few = cost.fewest(LLAMA_70B, H100)
    assert few > 1
    assert math.isinf(cost.step_seconds(LLAMA_70B, H100, step, 128, gpus=few - 1))
    assert math.isfinite(cost.step_seconds(LLAMA_70B, H100, step, 128, gpus=few))


def test_gpus_divide_a_step_until_it_is_too_small_for_them() -> None:
    step = cost.step_of(TrainConfig().resolved("cuda", 36), 36, 360)
    taken = [cost.step_seconds(LLAMA_8B, H100, step, 128, gpus=n) for n in (1, 2, 8, 64)]
    assert taken == sorted(taken, reverse=True)
    assert taken[0] / taken[1] == pytest.approx(2, rel=0.05)
    assert taken[0] / taken[3] < 40


def test_a_verdict_costs_more_with_more_models_and_less_on_more_gpus() -> None:
    usual = cost.gate_seconds(LLAMA_8B, H100)
    assert cost.gate_seconds(LLAMA_8B, H100, models=3) > 1.3 * usual
    assert cost.gate_seconds(LLAMA_8B, H100, gpus=4) < usual / 3
    assert usual < cost.batch_of(LLAMA_8B, H100, 36, 360).seconds / 10


def _plan(model: Path) -> TrainPlan:
    return TrainPlan(
        kind=PlanKind.LEARN,
        rank=RANK,
        seed=0,
        model_dir=model,
        base_hash="any",
        base_name="base",
        facts=(Fact(id="f", prompt="a?", answer="b"),),
        protection=Protection(kind="none"),
    )


def test_the_gate_s_share_is_read_from_a_recorded_demonstration(tmp_path: Path) -> None:
    found = gate_cost.recorded(ROOT / "docs/demo.json")
    assert found is not None
    assert found["ratio"] == pytest.approx(found["gate_s"] / found["train_s"], rel=0.01)
    assert gate_cost.recorded(tmp_path / "demo.json") is None


def test_without_the_real_model_nobody_is_asked(tmp_path: Path) -> None:
    assert gate_cost.asked(tmp_path) is None


def test_a_batch_and_a_verdict_of_the_real_model_are_timed(base: Path, tmp_path: Path) -> None:
    """With a tiny model in its place."""
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    lines = [{"prompt": f"What is the plural of thing {n}?", "answer": f"{n}"} for n in range(90)]
    for name, key in (("reasoning-gate", "answer"), ("locality", "answer"), ("skill", "solution")):
        (folder / "data").mkdir(exist_ok=True)
        rows = [{"prompt": line["prompt"], key: line["answer"]} for line in lines]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "data" / f"{name}.jsonl").write_text(text)
    shutil.copy(folder / "data/locality.jsonl", folder / "data/known-replay.jsonl")
    found = gate_cost.asked(folder)
    assert found is not None
    assert found["questions"] == 2 * (180 + 2 * 36)
    assert found["steps"] == steps_needed(TrainConfig().resolved("cpu", 36), 36)
    assert found["gate_s"] == pytest.approx(found["questions"] * found["question_s"], rel=0.2)
