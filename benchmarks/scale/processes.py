"""How far the adapter of two processes lies from that of one, on the small model."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

from adapters import lora, precision
from adapters.config import TrainConfig
from adapters.launch import launch
from adapters.models import base_hash
from adapters.trainer import train_adapter
from daemon.children import request
from daemon.children.jobs import Jobs
from daemon.config.sections import ProtectionSettings
from daemon.training import child, process
from daemon.training.messages import TrainRequest
from policies.facts.paraphrases import ParaphrasePolicy
from policies.records import Fact, PlanKind

MODEL: Final = Path("models/palorad-mini")
STEPS: Final = 60
FACTS: Final = tuple(
    Fact(
        id=name,
        prompt=f"What is the capital of {name}?",
        answer=f"Port {name[::-1].capitalize()}",
        subject=name,
        relation="capital",
    )
    for name in ("Velmar", "Ostrin", "Quade", "Bellun", "Tarsk", "Immer", "Nolvia", "Prast")
)
FP32: Final = "PALORAD_BENCH_FP32"


def run() -> dict[str, Any]:
    """The largest difference of any value of the factors, in fp32 and as this processor computes.

    In bf16 every sum of a pass is rounded, and rounds differently in two parts than in one.
    """
    with tempfile.TemporaryDirectory() as name:
        exact, seconds = _compared(Path(name) / "fp32", fp32=True)
        usual, _ = _compared(Path(name) / "usual", fp32=False)
    return {
        "two_process_max_diff": exact["difference"],
        "two_process_largest_value": exact["largest"],
        "two_process_bf16": precision.multiplies_bf16(),
        "two_process_max_diff_as_usual": usual["difference"],
        "two_process_steps": STEPS,
        "two_process_seconds": seconds,
    }


def train_share(workdir: Path, out: Path) -> None:
    """One of the processes, which is told by its environment whether to compute in fp32."""
    with _in_fp32(os.environ.get(FP32) == "1"):
        child.train_share(workdir, out)


def _compared(folder: Path, *, fp32: bool) -> tuple[dict[str, float], dict[str, float]]:
    asked, work, seconds = _request(folder), folder / "work", {}
    Jobs().prepare(work, asked)
    began = time.monotonic()
    with mock.patch.dict(os.environ, {"PALORAD_STEPS": __name__, FP32: str(int(fp32))}):
        codes = launch(
            ["-m", process.__name__, str(work), str(folder / "two"), str(os.getpid())], 2
        )
    if codes:
        raise RuntimeError(f"the processes ended with {codes}")
    seconds["two"] = round(time.monotonic() - began, 1)
    began = time.monotonic()
    with _in_fp32(fp32):
        plan = child.train_plan(TrainRequest.model_validate_json(request.read(work)))
        train_adapter(plan, out=folder / "one", work=folder / "alone", records=folder / "records")
    seconds["one"] = round(time.monotonic() - began, 1)
    one, two = lora.read(folder / "one"), lora.read(folder / "two")
    pairs = [
        (mine, its)
        for name, pair in one.factors.items()
        for mine, its in zip(pair, two.factors[name], strict=True)
    ]
    figures = {
        "difference": max(float((mine - its).abs().max()) for mine, its in pairs),
        "largest": max(float(mine.abs().max()) for mine, _ in pairs),
    }
    return figures, seconds


def _request(folder: Path) -> TrainRequest:
    return TrainRequest(
        kind=PlanKind.LEARN,
        number=1,
        rank=16,
        seed=0,
        model_dir=MODEL,
        base_name="base",
        base_sha256=base_hash(MODEL),
        facts=FACTS,
        config=TrainConfig(steps=STEPS, stop_loss=None),
        processes=2,
        paraphrases=ParaphrasePolicy(source="templates", at_admission=3, at_training=12),
        known=MODEL / "data/known-replay.jsonl",
        reasoning=MODEL / "data/reasoning-replay.jsonl",
        probe=MODEL / "probe",
        protection=ProtectionSettings(),
        max_lora_rank=64,
        adapters=folder / "adapters",
        served=folder / "served",
        records=folder / "records",
    )


@contextmanager
def _in_fp32(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    with mock.patch.object(precision, "INSTRUCTIONS", ()):
        yield
