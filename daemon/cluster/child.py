"""The leased child of a stage on a cluster: it submits the step, follows it, and publishes.

It holds the lock of the working directory, so it alone publishes, whatever lost nodes still do.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from pydantic import RootModel

from adapters import files
from adapters.errors import StoreConflict
from daemon.children.endings import EXIT_NO_ROOM
from daemon.children.jobs import LAUNCHER, JobError, Progress, died, last_progress, last_word
from daemon.children.worker import StepContext, Stopped
from daemon.cluster import attempts, results
from daemon.cluster.attempts import NodeAttempt
from daemon.cluster.node import Ended
from daemon.cluster.ray_cluster import ClusterUnreachable, NodeUnusable, connect
from daemon.config.cluster import RaySettings
from policies.errors import PaloradError
from policies.planning import Step

POLL_S: Final = 0.2
STOP_S: Final = 25.0


class StageReport(RootModel[dict[str, Any]]):
    """What the child on the node has reported, as it is."""


class StepFailed(PaloradError):
    """The child on the node gave up, or died."""

    def __init__(self, error: JobError) -> None:
        self.kind, self.final = error.kind, error.final
        super().__init__(error.error)


class SubmittedTask(Protocol):
    """What is needed of `daemon.cluster.ray_cluster.Task`."""

    def poll(self) -> Ended | None:
        """How it ended; None while it runs."""
        ...

    def cancel(self) -> None:
        """Ask it to stop."""
        ...


class Cluster(Protocol):
    """What is needed of `daemon.cluster.ray_cluster.RayCluster`."""

    def submit(self, step: str, attempt: Path) -> SubmittedTask:
        """Have a step done in the folder of an attempt."""
        ...


def train(desk: StepContext) -> StageReport:
    """Have the adapter trained on the cluster, and publish it."""
    return _do(Step.TRAIN, desk)


def evaluate(desk: StepContext) -> StageReport:
    """Have the candidate judged on the cluster, and keep the answers."""
    return _do(Step.EVALUATE, desk)


def _do(step: Step, desk: StepContext) -> StageReport:
    settings = RaySettings.model_validate_json((desk.workdir / LAUNCHER).read_text())
    found = attempts.finished(desk.workdir)
    if found is None:
        cluster = connect(settings, lambda error: _give_up(desk.workdir, error))
        found = follow(cluster, step, desk)
    return publish(step, desk.workdir, *found)


def _give_up(workdir: Path, error: ClusterUnreachable) -> None:
    """End this process with an error, whatever its main thread does."""
    said = JobError(kind=type(error).__name__, error=str(error))
    files.write_text(workdir / "error.json", said.model_dump_json())
    os._exit(0)


def follow(
    cluster: Cluster, step: Step, desk: StepContext
) -> tuple[NodeAttempt, Mapping[str, Any]]:
    """Have another attempt made; the attempt and what it reports, once it has ended.

    Raises what the child on the node has said, `StepFailed` where it has said nothing, `NodeLost`
    where its node is gone, and `Stopped` when the daemon asks for an end.
    """
    attempt = attempts.begin(desk.workdir, results.OUTPUTS[step])
    results.hand_over(step, desk.workdir, attempt)
    desk.progress(Progress(stage="waiting for a node"))
    task, seen = cluster.submit(step, attempt.path), None
    while (ended := task.poll()) is None:
        if desk.stopping:
            _stop(task)
        now = last_progress(attempt.path)
        if now is not None and now != seen:
            desk.progress(now)
            seen = now
        time.sleep(POLL_S)
    return attempt, _said(attempt, ended)


def publish(
    step: Step, workdir: Path, attempt: NodeAttempt, report: Mapping[str, Any]
) -> StageReport:
    """Publish what an attempt reports. Where it is not whole, it is not asked for another time."""
    try:
        results.take(step, workdir, attempt, report)
    except StoreConflict:
        (attempt.path / "report.json").unlink(missing_ok=True)
        raise
    return StageReport(dict(report))


def _said(attempt: NodeAttempt, ended: Ended) -> Mapping[str, Any]:
    if ended.code is None:
        raise NodeUnusable(
            f"{ended.node} does not see {attempt.path} as it is here: state_dir must lie on a "
            "folder that every node of the cluster has under the same path"
        )
    said = last_word(attempt.path)
    if said is not None and said.report is not None:
        return said.report
    if said is not None and said.error is not None:
        raise StepFailed(said.error)
    error = died(ended.code, attempt.path, ended.oom_kills)
    if ended.code == EXIT_NO_ROOM:
        raise OSError(errno.ENOSPC, error.error)
    raise StepFailed(error.model_copy(update={"error": f"on {ended.node}: {error.error}"}))


def _stop(task: SubmittedTask) -> None:
    """Have the step stopped at its checkpoint, and stop."""
    task.cancel()
    end = time.monotonic() + STOP_S
    with suppress(PaloradError):  # how a cancelled task ends
        while task.poll() is None and time.monotonic() < end:
            time.sleep(POLL_S)
    raise Stopped
