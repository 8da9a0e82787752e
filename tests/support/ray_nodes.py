"""A real Ray cluster on this machine: a head that does no work, and nodes that can be lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from unittest import mock

import psutil

ROOT: Final = Path(__file__).parents[2]
MEMORY: Final = 80 * 1024 * 1024
# Soon enough for a test, late enough for a machine that is busy.
HEALTH: Final = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1500,
    "health_check_failure_threshold": 4,
}
STEP: Final = "daemon.children.worker"


class RayNodes:
    """A cluster whose every node takes one step at a time."""

    def __init__(self, count: int = 2) -> None:
        from ray.cluster_utils import Cluster

        head = {
            "num_cpus": 0,
            "object_store_memory": MEMORY,
            "include_dashboard": False,
            "no_monitor": True,
            "include_log_monitor": False,
            "_system_config": HEALTH,
        }
        self._cluster = Cluster(True, head_node_args=head)
        self.nodes = [self.add() for _ in range(count)]

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self) -> Any:
        return self._cluster.add_node(num_cpus=1, num_gpus=0, object_store_memory=MEMORY)

    def working(self, workdir: Path) -> tuple[Any, psutil.Process] | None:
        """The node that does a step below `workdir` now, and the step's process there."""
        attempts = str(workdir / "attempts")
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or [""]
            if STEP in line and line[-1].startswith(attempts):
                for node in self.nodes:
                    if any(process == one for one in self._processes(node)):
                        return node, process
        return None

    def kill(self, node: Any) -> None:
        """Every process of a node is gone at once, as when its power is cut; another node joins."""
        self._signal(node, signal.SIGKILL)
        self._replace(node)

    def part(self, node: Any, step: psutil.Process) -> None:
        """Ray's processes on a node fall silent, while the step there goes on; another joins."""
        self._signal(node, signal.SIGSTOP, but=step)
        self._replace(node)

    def end(self, node: Any) -> None:
        """Nothing is left of a node that has fallen silent."""
        self._signal(node, signal.SIGKILL)

    def close(self) -> None:
        self._cluster.shutdown()

    def _replace(self, node: Any) -> None:
        self.nodes.remove(node)
        self.nodes.append(self.add())

    def _signal(self, node: Any, number: int, but: psutil.Process | None = None) -> None:
        for process in self._processes(node):
            with suppress(psutil.NoSuchProcess):
                if process != but:
                    process.send_signal(number)

    def _processes(self, node: Any) -> list[psutil.Process]:
        """The node's own process first, so that it cannot tell anybody what happens to the rest."""
        found = []
        for infos in node.all_processes.values():
            for info in infos:
                with suppress(psutil.NoSuchProcess):
                    process = psutil.Process(info.process.pid)
                    found += [process, *process.children(recursive=True)]
        return found


@contextmanager
def ray_nodes(count: int = 2) -> Iterator[RayNodes]:
    """A cluster for as long as the block lasts; its processes find palorad where this one does."""
    variables = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "RAY_USAGE_STATS_ENABLED": "0",
        # A busy machine takes long to start processes.
        "RAY_raylet_start_wait_time_s": "120",
        "RAY_agent_register_timeout_ms": "120000",
        "RAY_worker_register_timeout_seconds": "120",
    }
    with mock.patch.dict(os.environ, variables):
        made = RayNodes(count)
        try:
            yield made
        finally:
            made.close()


def until_working(
    nodes: RayNodes, workdir: Path, patience_s: float = 60.0
) -> tuple[Any, psutil.Process]:
    """Wait for a node to do a step below `workdir`."""
    end = time.monotonic() + patience_s
    while (found := nodes.working(workdir)) is None:
        assert time.monotonic() < end, f"no node works in {workdir}"
        time.sleep(0.05)
    return found


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended, also where a parent that stands still has not taken note."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def until_gone(process: psutil.Process, patience_s: float = 60.0) -> None:
    """Wait for a process to end."""
    end = time.monotonic() + patience_s
    while not gone(process):
        assert time.monotonic() < end, f"{process} goes on"
        time.sleep(0.05)
