"""A real Ray cluster of several nodes that are killed, cut off and left alone by the daemon."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapters import store
from daemon.children.jobs import Jobs, JobState, Launcher
from daemon.cluster.launching import MODULE
from daemon.config.cluster import RaySettings
from daemon.config.sections import ProtectionSettings
from daemon.training.messages import TrainDone, TrainRequest
from policies.records import BatchState
from tests.support.crashing import Site
from tests.support.fake_steps import COUNTER, HELD, JUDGING, MARKED, SLOWNESS
from tests.support.fitted import FIT, Fitted
from tests.support.ray_nodes import RayNodes, gone, ray_nodes, until_gone, until_working
from tests.training.test_child import train_request

pytestmark = [pytest.mark.scale, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with ray_nodes() as made:
        yield made


@contextmanager
def site(root: Path, nodes: RayNodes, seconds: float, evaluates: bool = False) -> Iterator[Site]:
    """A daemon that has `seconds` of work done on the cluster to train."""
    train = {
        "rank": 4,
        "rank_budget": 64,
        "backoff_s": 0.0,
        "replay": {"known": "", "reasoning": ""},
        "launcher": "ray",
        "ray": {"address": nodes.address, "num_gpus": 0},
    }
    environment = {
        SLOWNESS: str(seconds),
        JUDGING: "0.2",
        COUNTER: "checkpoint/counter",
        MARKED: "1",
    }
    made = Site(root, environment, changed={"train": train}, patience_s=170.0)
    if evaluates:
        # The same host as a number, which nobody takes for a loopback address.
        urls = tuple(url.replace("127.0.0.1", "2130706433") for url in made.settings.server.urls)
        server = made.settings.server.model_copy(update={"urls": urls})
        made.settings = made.settings.model_copy(update={"server": server})
    try:
        yield made
    finally:
        made.close()


def begin(one: Site, nodes: RayNodes) -> tuple[Any, Any]:
    """A file is dropped; the node that trains on it, once it is at work, and the process there."""
    one.layout.inbox.mkdir(parents=True, exist_ok=True)
    one.put("a.jsonl", ['{"prompt": "one", "answer": "1"}'])
    one.start()
    workdir = one.layout.workdir(1, "train")
    one.until(lambda: told(workdir)[-1:] >= [10], "training")
    return until_working(nodes, workdir)


def told(workdir: Path) -> list[int]:
    """How far the stage has said it was, line by line."""
    path = workdir / "progress.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line["done"] for line in map(json.loads, lines) if line["stage"] == "work"]


def the_adapter(one: Site) -> str:
    """What the one published adapter holds; everything else is as after a quiet day."""
    one.until(lambda: one._rests("a.jsonl"), "learning")
    (adapter,) = one.layout.adapters.iterdir()
    (served,) = one.layout.served.iterdir()
    assert not store.verify(adapter)
    assert not store.verify(served)
    state = one.state()
    assert state["target"] == 1
    assert [batch[3] for batch in state["batches"]] == [BatchState.LIVE]
    return (adapter / "adapter_config.json").read_text()


def failures(one: Site) -> list[str]:
    with one.reading() as ledger:
        return [
            str(event.payload["error"])
            for event in ledger.events.latest(100)
            if event.kind == "stage.failed"
        ]


def test_a_node_killed_in_the_middle_leads_to_one_adapter(nodes: RayNodes, tmp_path: Path) -> None:
    with site(tmp_path / "site", nodes, 6.0, evaluates=True) as one:
        node, _ = begin(one, nodes)
        nodes.kill(node)
        assert the_adapter(one).endswith("0002")
        (error,) = failures(one)
        assert "the node that did the step is lost" in error
        done = told(one.layout.workdir(1, "train"))
        assert done == sorted(done), "the second attempt began from nothing"
        asked = json.loads((one.layout.workdir(1, "evaluate") / "launcher.json").read_text())
        assert asked["address"] == nodes.address


def test_a_node_that_only_seems_lost_publishes_nothing(nodes: RayNodes, tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    with site(tmp_path / "site", nodes, 6.0) as one:
        one.environment[HELD] = str(go_on)
        node, step = begin(one, nodes)
        nodes.part(node, step)
        try:
            workdir = one.layout.workdir(1, "train")
            one.until((workdir / "attempts" / "0002" / "progress.jsonl").exists, "another attempt")
            assert not gone(step)
            go_on.touch()  # both train now, and publish at about the same time
            text = the_adapter(one)
            assert text.endswith("0002")
            until_gone(step)
            assert the_adapter(one) == text
        finally:
            nodes.end(node)


def test_a_daemon_killed_in_the_middle_ends_with_one_adapter(
    nodes: RayNodes, tmp_path: Path
) -> None:
    with site(tmp_path / "site", nodes, 4.0) as one:
        _, step = begin(one, nodes)
        daemon = one.alive()
        daemon.kill()
        daemon.wait()
        until_gone(step)  # the task ends with the child that has submitted it
        assert the_adapter(one).endswith("0002")
        assert failures(one) == []


# --- a real model ----------------------------------------------------------------------------


def run(jobs: Jobs, workdir: Path, request: TrainRequest) -> None:
    jobs.prepare(workdir, request)
    jobs.start("train", workdir)


def ended(jobs: Jobs, workdir: Path) -> JobState:
    end = time.monotonic() + 100
    while (state := jobs.poll(workdir)).outcome == "running":
        assert time.monotonic() < end, "the child takes too long"
        time.sleep(0.05)
    return state


def test_a_real_adapter_after_a_lost_node_has_the_bytes_of_one_trained_here(
    nodes: RayNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as on a node, with num_cpus = 1
    fitted = Fitted(tmp_path / "fitted", "llama")
    config = {"steps": 300, "checkpoint_s": 0.0, "stop_loss": None}

    def request(root: Path) -> TrainRequest:
        kept = ProtectionSettings(share=FIT.share)
        probe = fitted.folder / "probe"
        return train_request(fitted.model_dir, probe, root, config, protection=kept)

    launcher = Launcher(MODULE, RaySettings(address=nodes.address, num_gpus=0))
    jobs, workdir = Jobs({"train": launcher}), tmp_path / "work" / "1-train"
    run(jobs, workdir, request(tmp_path / "cluster"))
    node, _ = until_working(nodes, workdir)
    while not list(workdir.glob("attempts/0001/checkpoint/checkpoint-*/manifest.json")):
        assert jobs.poll(workdir).outcome == "running"
        time.sleep(0.02)
    nodes.kill(node)
    lost = ended(jobs, workdir)
    assert lost.error is not None, lost
    assert (lost.error.kind, lost.error.final) == ("NodeLost", False)
    run(jobs, workdir, request(tmp_path / "cluster"))
    there = ended(jobs, workdir)
    assert there.outcome == "finished", there.error

    local, here_dir = Jobs(), tmp_path / "here" / "1-train"
    run(local, here_dir, request(tmp_path / "local"))
    here = ended(local, here_dir)
    assert here.outcome == "finished", here.error
    one, other = (TrainDone.model_validate(state.report) for state in (there, here))
    assert one.adapter == other.adapter
    assert one.served == other.served
    (published,) = (tmp_path / "cluster" / "adapters").iterdir()
    assert store.read_manifest(published)["sha256"] == other.adapter.sha256
    assert not store.verify(published)
