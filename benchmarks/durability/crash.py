"""Every durable step of the code is killed at, and pairs of them, the second in recovery."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.support import crash_tour
from tests.support.crash_matrix import Matrix

PAIRS = 60
SEED = 1


def run() -> dict[str, Any]:
    """How many kills were survived, all promises held; raises naming those that were not."""
    with tempfile.TemporaryDirectory(prefix="palorad-crash-") as folder:
        passed = crash_tour.trace(Path(folder) / "trace")
        matrix = Matrix.of(passed, PAIRS, SEED)
        matrix.survive(Path(folder))
    return {
        "crash_points": len(matrix.at_first) + len(matrix.later),
        "crash_pairs": len(matrix.pairs),
    }
