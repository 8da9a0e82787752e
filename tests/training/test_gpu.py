"""On a real CUDA device: tokens as of transformers and PEFT, a bf16 base, memory that ends."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from adapters import lora, models
from adapters.config import TrainConfig
from adapters.generate import Generator, Request
from adapters.plans import TrainPlan
from adapters.trainer import train_adapter
from daemon.serving import gpu
from daemon.training.child import read_examples
from mini.check import MODEL, CheckQuestion, share
from mini.world import Form
from policies.facts.heldout import with_held_out
from policies.facts.templates import varied
from policies.records import Fact, PlanKind

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
FACTS = 12


@pytest.fixture(scope="module")
def facts() -> tuple[Fact, ...]:
    lines = Path("examples/facts/01-capitals.jsonl").read_text("utf-8").splitlines()[:FACTS]
    rows = [json.loads(line) for line in lines]
    made = [Fact(**{"id": str(n), **row}) for n, row in enumerate(rows)]
    return tuple(with_held_out(fact, varied, 24) for fact in made)


def plan(facts: tuple[Fact, ...], **config: int) -> TrainPlan:
    return TrainPlan(
        kind=PlanKind.LEARN,
        rank=8,
        seed=1,
        model_dir=MODEL,
        base_hash=models.base_hash(MODEL),
        base_name="base",
        facts=facts,
        known=tuple(read_examples(MODEL / "data/known-replay.jsonl", "answer")),
        reasoning=tuple(read_examples(MODEL / "data/reasoning-replay.jsonl", "solution"))[:400],
        probe_dir=MODEL / "probe",
        config=TrainConfig(**config),
    )


@pytest.fixture(scope="module")
def learnt(facts: tuple[Fact, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learnt")
    report = train_adapter(plan(facts), out=folder / "one", work=folder / "work")
    assert report.leak <= 5e-3
    assert report.loss_last < 0.2 * report.loss_first
    return folder / "one"


def test_the_base_is_bf16_the_adapter_fp32_and_the_facts_are_in(
    facts: tuple[Fact, ...], learnt: Path
) -> None:
    generator = Generator(MODEL)
    assert generator.device.type == "cuda"
    assert generator.model.dtype is torch.bfloat16
    assert all(down.dtype is torch.float32 for down, _ in lora.read(learnt).factors.values())
    generator.load("one", learnt)
    asked = [CheckQuestion(p, f.answer, Form.CHAT) for f in facts for p in f.eval_prompts]
    assert share(generator, None, asked) <= 0.05
    assert share(generator, "one", asked) >= 0.9


@pytest.mark.parametrize("adapter", [None, "one"])
def test_greedy_tokens_are_those_of_transformers_and_peft(
    learnt: Path, adapter: str | None
) -> None:
    prompts = [row["prompt"] for row in map(json.loads, _lines("reasoning-report.jsonl", 8))]
    generator = Generator(MODEL, dtype=torch.float32)
    generator.load("one", learnt)
    requests = [Request(generator.encode(prompt), max_tokens=80) for prompt in prompts]
    mine = [made.token_ids for made in generator.generate(adapter, requests)]
    model = models.load_base(MODEL, generator.device, torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, learnt)
    for prompt, said in zip(prompts, mine, strict=True):
        ids = torch.tensor([generator.encode(prompt)], device=generator.device)
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=80, do_sample=False
        )
        assert said == tuple(out[0, ids.shape[1] :].tolist())


def test_a_device_without_room_gets_smaller_forward_passes(
    facts: tuple[Fact, ...], tmp_path: Path
) -> None:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    room = torch.cuda.memory_reserved() + 96 * 1024**2
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        asked = plan(facts, max_tokens=1 << 20, steps=4)
        report = train_adapter(asked, out=tmp_path / "one", work=tmp_path / "work")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert report.steps == 4
    assert math.isfinite(report.loss_last)


def test_nvml_tells_the_memory_and_what_does_not_fit_is_refused() -> None:
    memory = gpu.read_memory(os.environ)
    assert memory.total >= torch.cuda.get_device_properties(0).total_memory
    assert 0 < memory.free <= memory.total
    gpu.require_room(gpu.GIB, lambda: memory)
    with pytest.raises(gpu.NoRoom, match="GiB are free"):
        gpu.require_room(memory.total + 1, lambda: memory)


def _lines(name: str, count: int) -> list[str]:
    return (MODEL / "data" / name).read_text("utf-8").splitlines()[:count]
