"""How many threads a child computes with."""

from __future__ import annotations

import os
from collections.abc import Mapping


def threads(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """OMP_NUM_THREADS for a child: as it is set, else half of the cores.

    A trainer and a server run side by side; threads that wait for a core that the other one has
    make a step ten times slower and more.
    """
    if "OMP_NUM_THREADS" in environment:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, _cores() // 2))}


def engine_threads(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The same for vLLM on a CPU, whose engine keeps one core busy by itself while it decodes."""
    wanted = int((threads(environment) or environment)["OMP_NUM_THREADS"].split(",")[0])
    return {"OMP_NUM_THREADS": str(max(1, min(wanted, _cores() - 1)))}


def _cores() -> int:
    return len(os.sched_getaffinity(0))
