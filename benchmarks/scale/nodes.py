"""A node of a Ray cluster is killed in the middle of training: what is published, and how soon."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from adapters import store
from adapters.config import TrainConfig
from daemon.children.jobs import Jobs, JobState, Launcher, last_progress
from daemon.cluster.launching import MODULE
from daemon.config.cluster import RaySettings
from daemon.config.sections import ProtectionSettings
from daemon.training.messages import TrainDone, TrainRequest
from policies.facts.paraphrases import ParaphrasePolicy
from policies.records import PlanKind
from tests.support.fitted import FACTS, FIT, Fitted
from tests.support.ray_nodes import RayNodes, ray_nodes, until_working

CONFIG: Final = TrainConfig(steps=400, checkpoint_s=0.5, stop_loss=None, min_traces=0)
PATIENCE_S: Final = 200.0


def run() -> dict[str, Any]:
    """How many adapters a killed node leads to, whether they have the bytes of an undisturbed run,
    and seconds: from the kill to its being noticed, and from the next start to training again."""
    with tempfile.TemporaryDirectory() as folder, ray_nodes() as nodes:
        return _lost(Path(folder), nodes)


def _lost(root: Path, nodes: RayNodes) -> dict[str, Any]:
    fitted = Fitted(root / "fitted", "llama")
    request = _request(fitted, root / "cluster")
    launcher = Launcher(MODULE, RaySettings(address=nodes.address, num_gpus=0))
    jobs, workdir = Jobs({"train": launcher}), root / "work" / "1-train"
    jobs.prepare(workdir, request)
    jobs.start("train", workdir)
    node, _ = until_working(nodes, workdir)
    _wait(lambda: bool(list(workdir.glob("attempts/0001/checkpoint/checkpoint-*"))))
    killed = time.monotonic()
    nodes.kill(node)
    _ended(jobs, workdir)
    noticed = time.monotonic()
    jobs.start("train", workdir)
    _wait(lambda: last_progress(workdir / "attempts" / "0002") is not None)
    resumed = time.monotonic()
    done = TrainDone.model_validate(_ended(jobs, workdir).report)

    local, here = Jobs(), root / "here" / "1-train"
    places = {"adapters": root / "local" / "adapters", "served": root / "local" / "served"}
    local.prepare(here, request.model_copy(update=places))
    local.start("train", here)
    undisturbed = TrainDone.model_validate(_ended(local, here).report)
    published = [p for p in (root / "cluster" / "adapters").iterdir() if not store.verify(p)]
    first = json.loads((workdir / "attempts/0002/progress.jsonl").read_text().splitlines()[0])
    return {
        "ray_lost_node_adapters": len(published),
        "ray_lost_node_same_bytes": done.adapter.sha256 == undisturbed.adapter.sha256,
        "ray_lost_node_resumed_at_step": first["done"],
        "ray_lost_node_noticed_s": round(noticed - killed, 1),
        "ray_lost_node_training_again_s": round(resumed - noticed, 1),
    }


def _request(fitted: Fitted, root: Path) -> TrainRequest:
    return TrainRequest(
        kind=PlanKind.LEARN,
        number=1,
        rank=2,
        seed=0,
        model_dir=fitted.model_dir,
        base_name="base",
        base_sha256=fitted.hash,
        facts=FACTS,
        config=CONFIG,
        paraphrases=ParaphrasePolicy(source="templates", at_admission=1, at_training=1),
        probe=fitted.folder / "probe",
        protection=ProtectionSettings(share=FIT.share),
        max_lora_rank=64,
        adapters=root / "adapters",
        served=root / "served",
    )


def _ended(jobs: Jobs, workdir: Path) -> JobState:
    _wait(lambda: jobs.poll(workdir).outcome != "running")
    return jobs.poll(workdir)


def _wait(done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not done():
        if time.monotonic() > end:
            raise TimeoutError("the cluster does not get on")
        time.sleep(0.05)
