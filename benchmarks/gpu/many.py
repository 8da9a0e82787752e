"""The same as `batch`, of as many facts as an operator drops at once."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.batch import learnt
from benchmarks.gpu.bench import Bench


def run(bench: Bench) -> dict[str, Any]:
    """A large batch."""
    return learnt(bench, bench.shape.many)
