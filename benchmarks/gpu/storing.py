"""An adapter's way to where it answers: written, published, loaded, switched to."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from adapters import lora, models, store
from adapters.generate import Generator, Request
from adapters.lora import Lora
from benchmarks.gpu.bench import Bench, resident

SWITCHES = 20


def run(bench: Bench) -> dict[str, Any]:
    """Seconds to write, publish and load an adapter of the product's rank; milliseconds to the
    first token on the adapter that answered last, and on another one."""
    base = bench.base()
    with resident(base), TemporaryDirectory(dir=bench.folder) as folder:
        # The hooks that apply adapters stay with the model: it is made again for what follows.
        generator = Generator(bench.model_dir, max_rank=bench.shape.rank, device=bench.device)
        seconds: dict[str, list[float]] = {"write_s": [], "publish_s": [], "load_s": []}
        size = 0
        for number in range(2):
            staging = store.staging(Path(folder), f"{number}")
            adapter = random_adapter(base, bench.shape.rank, number)
            _timed(seconds["write_s"], bench, lambda: lora.write(staging, adapter, "base"))  # noqa: B023
            size = sum(file.stat().st_size for file in staging.iterdir())
            placed: list[Path] = []
            _timed(
                seconds["publish_s"],
                bench,
                lambda: placed.append(store.publish(staging, Path(folder), {})),  # noqa: B023
            )
            _timed(seconds["load_s"], bench, lambda: generator.load(str(number), placed[0]))  # noqa: B023
        same, switched = _first_tokens(bench, generator)
    bench.release()
    return {
        "adapter_gb": round(size / 1e9, 6),
        **{name: round(median(found), 4) for name, found in seconds.items()},
        "first_token_ms": round(1000 * median(same), 3),
        "first_token_after_switch_ms": round(1000 * median(switched), 3),
    }


def random_adapter(base: Any, rank: int, seed: int) -> Lora:
    """Factors of every MLP matrix, on the CPU in fp32."""
    generator = torch.Generator().manual_seed(seed)
    factors = {
        name: (
            torch.randn(rank, matrix.in_features, generator=generator) / matrix.in_features,
            torch.randn(matrix.out_features, rank, generator=generator) / rank,
        )
        for name, matrix in models.matrices(base).items()
    }
    return Lora(factors, dict.fromkeys(factors, 1.0))


def _first_tokens(bench: Bench, generator: Generator) -> tuple[list[float], list[float]]:
    request = Request(generator.encode("Who founded it ?"), max_tokens=1, ignore_eos=True)
    same: list[float] = []
    switched: list[float] = []
    generator.generate("1", [request])
    for number in range(SWITCHES):
        for into in (switched, same):
            _timed(into, bench, lambda: generator.generate(str(number % 2), [request]))  # noqa: B023
    return same, switched


def _timed(into: list[float], bench: Bench, act: Callable[[], object]) -> None:
    bench.synchronise()
    began = time.perf_counter()
    act()
    into.append(bench.synchronise() - began)
