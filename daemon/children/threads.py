"""How many threads a child computes with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

SPINS: Final = "20000"
"""How often a thread of GNU OpenMP looks before it sleeps (benchmarks/notebook, "Threads that
spin")."""


def threads(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """How a child computes: as the environment says, else on half of the cores, waiting briefly.

    A trainer and a server run side by side; threads that spin while the other one has their core
    make a step many times slower.
    """
    added = {}
    if "OMP_NUM_THREADS" not in environment:
        added["OMP_NUM_THREADS"] = str(max(1, _cores() // 2))
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        added["GOMP_SPINCOUNT"] = SPINS
    return added


def engine_threads(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The same for vLLM on a CPU, whose engine keeps one core busy by itself while it decodes."""
    wanted = int({**environment, **threads(environment)}["OMP_NUM_THREADS"].split(",")[0])
    return {"OMP_NUM_THREADS": str(max(1, min(wanted, _cores() - 1)))}


def _cores() -> int:
    return len(os.sched_getaffinity(0))
