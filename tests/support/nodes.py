"""Nodes of a cluster that do a stage in this process, one piece of it at each look."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from adapters import store
from daemon.children.worker import StepContext
from daemon.cluster import attempts
from daemon.cluster.child import follow, publish
from daemon.cluster.node import Ended
from daemon.cluster.ray_cluster import NodeLost
from daemon.ledger.records import Adapter, Served
from daemon.training.messages import TrainDone
from policies.planning import Step

Work = Iterator[None]
STEPS = 3


@dataclass
class Node:
    """One attempt on a node; `lost_after` so many pieces the cluster says that the node is gone,
    and `finish` has it go on all the same."""

    path: Path
    work: Work
    lost_after: int = 1 << 30
    done: int = 0
    cancelled: bool = False

    def poll(self) -> Ended | None:
        if self.done >= self.lost_after:
            raise NodeLost("the node that did the step is lost")
        return Ended("node", 0) if self.piece() is None else None

    def piece(self) -> int | None:
        """Do another piece; None where nothing is left."""
        for _ in self.work:
            self.done += 1
            return self.done
        return None

    def finish(self) -> None:
        while self.piece() is not None:
            pass

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Cluster:
    """Every attempt that was submitted, in order; of those in `lost` the node is given up after so
    many pieces."""

    script: Callable[[Path], Work]
    lost: dict[int, int] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)

    def submit(self, step: str, attempt: Path) -> Node:
        number = len(self.nodes) + 1
        node = Node(attempt, self.script(attempt), self.lost.get(number, 1 << 30))
        self.nodes.append(node)
        return node


def training(attempt: Path) -> Work:
    """Train in a few steps with a checkpoint after each, then publish; the bytes tell by which
    attempt. As a real child does, it knows nothing but its folder."""
    asked = json.loads((attempt / "request.json").read_text())
    checkpoint = attempt / "checkpoint" / "checkpoint-1" / "state.pt"
    while (at := int(checkpoint.read_text()) if checkpoint.exists() else 0) < STEPS:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        part = checkpoint.with_suffix(".part")
        part.write_text(str(at + 1))
        part.replace(checkpoint)
        with (attempt / "steps").open("a") as steps:
            steps.write(f"{at + 1} ")
        yield
    published = []
    for folder in ("adapters", "served"):
        staging = store.staging(Path(asked[folder]), "staged")
        (staging / "adapter_config.json").write_text(f"{folder} by attempt {attempt.name}")
        yield
        published.append(store.publish(staging, Path(asked[folder]), {"by": attempt.name}))
        yield
    adapter, served = (store.read_manifest(path)["sha256"] for path in published)
    done = TrainDone(
        adapter=Adapter(sha256=adapter, rank=1),
        served=Served(name=published[1].name, sha256=served),
        rank=1,
        report={},
        seconds={},
    )
    (attempt / "report.json").write_text(done.model_dump_json())
    yield


def attempt_once(cluster: Cluster, step: Step, workdir: Path) -> dict[str, object]:
    """What the leased child does between connecting to the cluster and its report."""
    with StepContext(workdir) as desk:
        found = attempts.finished(workdir) or follow(cluster, step, desk)
        return publish(step, workdir, *found).root


def published(folder: Path) -> list[str]:
    """What the whole directories below a folder hold, staging aside."""
    found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    assert not [problem for path in found for problem in store.verify(path)]
    return sorted((path / "adapter_config.json").read_text() for path in found)
