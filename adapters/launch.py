"""Processes that train together are started by torchrun, and end together."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from adapters import models

NOT_OURS: Final = "SIGUSR1"


def training_places() -> tuple[int, str]:
    """How many processes can train here at once, and on what: one on each GPU, or core."""
    if models.pick_device().type == "cuda":
        return torch.cuda.device_count(), "GPUs"
    return len(os.sched_getaffinity(0)), "cores"


def launch(arguments: Sequence[str], count: int) -> dict[int, int]:
    """Run Python with `arguments` in `count` processes on this host, and wait for all.

    As `torchrun --standalone --nproc-per-node COUNT` does, with RANK and WORLD_SIZE in their
    environment. Where one fails the others are ended; the exit codes of those that did not end
    well, negative for signals, by their number: {} where all went well.
    """
    # On one host nothing has to be reached from outside.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id="train",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        # SIGTERM stays with the caller, who asks the processes to stop at a checkpoint.
        signals_to_handle=NOT_OURS,
    )
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        return {number: failure.exitcode for number, failure in error.failures.items()}
    return {}
