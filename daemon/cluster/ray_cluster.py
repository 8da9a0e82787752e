"""Ray, and nothing else of the project knows it: connect, submit a step, ask how it stands."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from adapters import files
from daemon.cluster.node import Ended, run_step
from daemon.config.cluster import RaySettings
from policies.errors import PaloradError
from policies.planning import Step

DIAL_S: Final = 5.0
CONNECT_S: Final = 60.0
LOOK_S: Final = 2.0
NODE: Final = "node"
OUR_VARIABLES: Final = "PALORAD_"
NOT_HANDED_ON: Final = "PALORAD_PARENT"


class RayMissing(PaloradError):
    """Ray is not installed where the daemon runs."""

    final = True


class ClusterUnreachable(PaloradError):
    """Nobody answers at the address of the cluster. It is waited for; no attempt is used up."""


class NodeLost(PaloradError):
    """The node, or Ray's process on it, was gone before the step had ended."""


class NodeUnusable(PaloradError):
    """The node cannot do a step: palorad is missing there, or another version of it runs."""


class Task:
    """One submitted step."""

    def __init__(self, ray: Any, ref: Any, attempt: Path) -> None:  # noqa: ANN401 - optional
        self._ray = ray
        self._ref = ref
        self._node = attempt / NODE
        self._look_at = time.monotonic() + LOOK_S

    def poll(self) -> Ended | None:
        """How it ended; None while it waits for a node or runs. Raises `NodeLost` and
        `NodeUnusable`."""
        errors = self._ray.exceptions
        ready, _ = self._ray.wait([self._ref], timeout=0, fetch_local=False)
        if not ready:
            self._require_node()
            return None
        try:
            ended: Ended = self._ray.get(self._ref)
        except errors.RayTaskError as error:
            raise NodeUnusable(
                f"a node of the cluster cannot do the step: {_last_line(error)}; install the same "
                "palorad there as on the daemon's host"
            ) from error
        except errors.RayError as error:
            raise NodeLost(
                f"the node that did the step is lost: {type(error).__name__}: {_first_line(error)}"
            ) from error
        return ended

    def _require_node(self) -> None:
        """Raises `NodeLost` where the cluster has given up the node: to a task that runs there Ray
        keeps its connection, for as long as nothing on it ends."""
        if time.monotonic() < self._look_at or not self._node.exists():
            return
        self._look_at = time.monotonic() + LOOK_S
        node = self._node.read_text()
        if any(one["NodeID"] == node and not one["Alive"] for one in self._ray.nodes()):
            raise NodeLost(f"the node that did the step is lost: {node} no longer answers")

    def cancel(self) -> None:
        """Ask the step to stop at its next checkpoint, or not to begin."""
        with suppress(self._ray.exceptions.RayError):
            self._ray.cancel(self._ref, force=False)


class RayCluster:
    """A connection to the cluster; its tasks end with this process."""

    def __init__(self, ray: Any, settings: RaySettings) -> None:  # noqa: ANN401 - Ray is optional
        self._ray = ray
        self._settings = settings

    def submit(self, step: str, attempt: Path) -> Task:
        """Have a step done in the folder of an attempt, once: a lost step is not done again by Ray,
        but in another attempt."""
        remote = self._ray.remote(run_on_node).options(
            name=f"palorad {attempt.parents[1].name} {attempt.name}",
            num_cpus=self._settings.num_cpus,
            num_gpus=self._settings.num_gpus if step == Step.TRAIN else 0,
            max_retries=0,
        )
        ref = remote.remote(step, os.fspath(attempt), handed_on(os.environ))
        return Task(self._ray, ref, attempt)


def run_on_node(step: str, attempt: str, environment: Mapping[str, str]) -> Ended:
    """Do a step on this node, after writing down which one that is."""
    import ray  # noqa: PLC0415 - optional

    with suppress(OSError):  # where the folder is not shared, as `run_step` finds
        files.write_text(Path(attempt) / NODE, ray.get_runtime_context().get_node_id())
    return run_step(step, attempt, environment)


def connect(settings: RaySettings, silent: Callable[[ClusterUnreachable], None]) -> RayCluster:
    """Connect to the cluster. Raises `RayMissing` or `ClusterUnreachable`; where Ray goes on trying
    for longer than a minute, `silent` is called in another thread and should end the process.
    """
    try:
        import ray  # noqa: PLC0415 - seconds, and optional
    except ImportError as error:
        raise RayMissing(
            'train.launcher is "ray", but Ray is not installed: pip install "palorad[ray]", or set '
            'train.launcher = "local"'
        ) from error
    host, _, port = settings.address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=DIAL_S).close()
    except OSError as error:
        raise _unreachable(settings, str(error)) from error
    tell = threading.Timer(CONNECT_S, lambda: silent(_unreachable(settings, "no answer from Ray")))
    tell.daemon = True
    former = signal.getsignal(signal.SIGTERM)
    tell.start()
    try:
        ray.init(address=settings.address, log_to_driver=False, logging_level="ERROR")
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
        raise _unreachable(settings, _first_line(error)) from error
    finally:
        tell.cancel()
        # Ray has put its own handler there.
        signal.signal(signal.SIGTERM, former)
    return RayCluster(ray, settings)


def handed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of this process that the child on the node gets too."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(OUR_VARIABLES) and name != NOT_HANDED_ON
    }


def _unreachable(settings: RaySettings, because: str) -> ClusterUnreachable:
    return ClusterUnreachable(
        f"no Ray cluster at train.ray.address = {settings.address}: {because}; start it with "
        "'ray start --head', and join it on this host with 'ray start --address'"
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _last_line(error: BaseException) -> str:
    return next(reversed(str(error).strip().splitlines()), type(error).__name__)
