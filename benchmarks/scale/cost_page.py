"""The tables of docs/scale.md, from the cost model: `python -m benchmarks.scale.cost_page`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from adapters.config import TrainConfig
from benchmarks import pages
from benchmarks.provenance import ROOT
from benchmarks.scale import cost
from benchmarks.scale.cost import H100, LLAMA_8B, LLAMA_70B, QWEN_7B, SMOL

PAGE: Final = ROOT / "docs/scale.md"
GPUS: Final = (1, 4, 8, 16, 64)
BATCHES: Final = ((36, 0), (36, 360), (500, 360))
SHARED: Final = cost.Lengths(prefix=24)
CORE_S: Final = 5.2
"""Of one core, a step on SmolLM2: the notebook's page of 2026-11-30."""
CORE_FLOPS: Final = 210e9
"""bf16 products of that core: the notebook's page of 2026-11-28."""
ON_SMOL: Final = cost.Lengths(short=47, trace=60, learnt_short=9, learnt_trace=30, prefix=24)
"""Tokens of that step's texts: those of the notebook, and of the rest estimates."""


def tables() -> dict[str, str]:
    """What stands between the page's markers, by name."""
    return {
        "batches": batches(),
        "gpus": by_gpus(),
        "probe": probes(),
        "bytes": sizes(),
        "gate": gates(),
        "checked": checked(),
    }


def batches() -> str:
    """A plan on as few H100s as hold the base."""
    rows = []
    for model in (LLAMA_8B, LLAMA_70B):
        gpus = cost.fewest(model, H100)
        for facts, replayed in BATCHES:
            found = cost.batch_of(model, H100, facts, replayed, gpus=gpus)
            less = cost.batch_of(model, H100, facts, replayed, gpus=gpus, lengths=SHARED)
            rows.append(
                [
                    f"{model.name}, {_gpus(gpus)}",
                    f"{facts} + {replayed}",
                    f"{found.steps:,}",
                    f"{found.tokens / 1e6:.1f} M",
                    _time(found.seconds),
                    _time(less.seconds),
                    _time(found.seconds / facts),
                ]
            )
    head = [
        "model",
        "new + earlier facts",
        "steps",
        "tokens",
        "time",
        "shared prefix",
        "for a new fact",
    ]
    return _table(head, rows)


def by_gpus() -> str:
    """The time of 36 facts beside 360 earlier ones, and of 500, on more and more GPUs."""
    rows = []
    for gpus in GPUS:
        cells = [str(gpus)]
        for model in (LLAMA_8B, LLAMA_70B):
            for facts, replayed in BATCHES[1:]:
                held = cost.copies(model, H100, gpus)
                found = (
                    cost.batch_of(model, H100, facts, replayed, gpus=gpus).seconds if held else 0
                )
                cells.append(_time(found) if held else "–")
        rows.append(cells)
    head = ["H100s", "8B, 36 facts", "8B, 500 facts", "70B, 36 facts", "70B, 500 facts"]
    return _table(head, rows)


def probes() -> str:
    """A probe on one GPU, as if that held the base."""
    rows = []
    for model in (LLAMA_8B, QWEN_7B, LLAMA_70B):
        found = cost.probe_of(model, H100)
        flops = f"{found.flops / 1e15:.0f}"
        rows.append(
            [
                model.name,
                str(found.passes),
                flops,
                _time(found.seconds),
                f"{found.disk / 1e9:.1f} GB",
            ]
        )
    return _table(["model", "passes", "PFLOP", "time", "on disk"], rows)


def sizes() -> str:
    """Bytes of the base, and of an adapter where it lies and while it is trained."""
    rows = []
    for model in (LLAMA_8B, QWEN_7B, LLAMA_70B):
        weights, adapter = cost.BF16 * model.parameters, cost.FP32 * model.trained(128)
        rows.append(
            [
                model.name,
                *(f"{size / 1e9:.1f} GB" for size in (weights, adapter, 2 * adapter, 4 * adapter)),
            ]
        )
    head = [
        *("model", "base in bf16", "adapter, rank 128", "a revision's disk"),
        "factors, gradients, Adam",
    ]
    return _table(head, rows)


def gates() -> str:
    """A verdict beside the training of 36 facts and 360 earlier ones."""
    rows = []
    for model in (LLAMA_8B, LLAMA_70B):
        gpus = cost.fewest(model, H100)
        train = cost.batch_of(model, H100, 36, 360, gpus=gpus).seconds
        gate = cost.gate_seconds(model, H100, gpus=gpus)
        share = f"{100 * gate / train:.0f} %"
        rows.append([f"{model.name}, {_gpus(gpus)}", _time(train), _time(gate), share])
    return _table(["model", "training", "gate", "gate / training"], rows)


def checked() -> str:
    """The model's FLOPs beside what was measured."""
    published = 4 * LLAMA_8B.parameters * 12_473
    step = cost.step_of(TrainConfig().resolved("cpu", 36), 36, 0, 300, ON_SMOL)
    flops = cost.step_flops(SMOL, step, 128, length=25)
    rows = [
        [
            "LoRA of Llama 3 8B, one H100, NeMo (published)",
            "12,473 tokens/s, 402 TFLOP/s",
            f"{published / 1e12:.0f} TFLOP/s by 4 N a token",
        ],
        [
            "SmolLM2-135M, one core, palorad",
            f"{CORE_S} s a step",
            f"{flops / CORE_FLOPS:.1f} s at the core's {CORE_FLOPS / 1e9:.0f} GFLOP/s, "
            f"so {100 * flops / CORE_FLOPS / CORE_S:.0f} % of them are reached",
        ],
    ]
    return _table(["what", "measured", "by the cost model"], rows)


def _gpus(count: int) -> str:
    return f"{count} H100" + ("s" if count > 1 else "")


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(page: Path = PAGE) -> None:
    """Write the tables into the page."""
    pages.fill(page, tables())


if __name__ == "__main__":
    main()
