"""A real Ray cluster of several nodes, one of which is killed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapters import store
from policies.records import BatchState
from tests.support.crashing import Site
from tests.support.fake_steps import COUNTER, JUDGING, MARKED, SLOWNESS
from tests.support.ray_nodes import RayNodes, ray_nodes, until_working

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
