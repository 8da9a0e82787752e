"""Ray itself stands behind one module: what it is asked for, and what its errors become."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from daemon.children.jobs import LOCAL
from daemon.cluster import ray_cluster
from daemon.cluster.launching import launchers
from daemon.cluster.ray_cluster import (
    ClusterUnreachable,
    NodeLost,
    NodeUnusable,
    RayMissing,
    Task,
    connect,
    handed_on,
)
from daemon.config.cluster import RaySettings
from daemon.config.settings import Settings
from policies.errors import PaloradError


class FakeRay:
    """Ray's names, as far as they are used."""

    class exceptions:  # noqa: N801
        class RayError(Exception): ...

        class RayTaskError(RayError): ...

    def __init__(self, outcome: Exception | None = None) -> None:
        self.outcome = outcome
        self.options = mock.Mock()

    def wait(self, refs: list[str], timeout: int, fetch_local: bool) -> tuple[list[str], list[str]]:
        return refs, []

    def get(self, ref: str) -> str:
        if self.outcome is not None:
            raise self.outcome
        return ref


def settings(**changes: Any) -> Settings:
    return Settings.model_validate(
        {"train": {"launcher": "ray"}, "server": {"mode": "attach"}, **changes}
    )


def never(error: PaloradError) -> None:
    raise AssertionError(error)


def test_nobody_at_the_address_is_said_in_one_line() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ClusterUnreachable, match=f"{address}.*refused.*ray start") as raised:
            connect(RaySettings(address=address), never)
    assert "\n" not in str(raised.value)
    assert not getattr(raised.value, "final", False)


def test_without_ray_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RayMissing, match=r"pip install .palorad\[ray\]") as raised:
        connect(RaySettings(), never)
    assert raised.value.final


def test_a_cluster_that_answers_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would go on trying for ever, deaf to every signal."""
    told: list[PaloradError] = []
    ray = mock.Mock(exceptions=FakeRay.exceptions)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(ray_cluster, "CONNECT_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def deaf(**_: object) -> None:
            while not told:
                pass

        ray.init = deaf
        connect(RaySettings(address=address), told.append)
    assert [type(error) for error in told] == [ClusterUnreachable]


def test_what_ray_says_of_a_task_becomes_what_to_do(tmp_path: Path) -> None:
    lost = FakeRay.exceptions.RayError("The node died.\nmore")
    with pytest.raises(NodeLost, match=r"is lost: RayError: The node died\.$"):
        Task(FakeRay(lost), "ref", tmp_path).poll()
    broken = FakeRay.exceptions.RayTaskError("Traceback\nModuleNotFoundError: No module daemon")
    with pytest.raises(NodeUnusable, match="ModuleNotFoundError: No module daemon; install"):
        Task(FakeRay(broken), "ref", tmp_path).poll()
    assert Task(FakeRay(), "ref", tmp_path).poll() == "ref"


def test_a_node_that_the_cluster_has_given_up_is_lost_though_its_task_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that is cut off ends no connection, so Ray itself would wait for the task."""
    monkeypatch.setattr(ray_cluster, "LOOK_S", 0.0)
    ray = mock.Mock(exceptions=FakeRay.exceptions)
    ray.wait.return_value = ([], ["ref"])
    ray.nodes.return_value = [{"NodeID": "a", "Alive": True}, {"NodeID": "b", "Alive": False}]
    task = Task(ray, "ref", tmp_path)
    assert task.poll() is None
    (tmp_path / "node").write_text("a")
    assert task.poll() is None
    (tmp_path / "node").write_text("b")
    with pytest.raises(NodeLost, match="b no longer answers"):
        task.poll()


def test_the_node_s_child_gets_our_variables_but_not_whose_child_this_is() -> None:
    environment = {"PALORAD_STEPS": "a", "PALORAD_PARENT": "1", "PATH": "/bin", "SECRET": "x"}
    assert handed_on(environment) == {"PALORAD_STEPS": "a"}


# --- which stages -----------------------------------------------------------------------------


def test_without_a_cluster_every_child_does_its_step_itself() -> None:
    assert launchers(Settings()) == LOCAL


@pytest.mark.parametrize(
    ("url", "judge", "stages"),
    [
        ("http://127.0.0.1:8421", "", {"train"}),
        ("http://localhost:8421", "", {"train"}),
        ("http://[::1]:8421", "", {"train"}),
        ("http://gpu1:8421", "", {"train", "evaluate"}),
        ("http://10.0.0.7:8421", "http://judge/v1", {"train", "evaluate"}),
        ("http://10.0.0.7:8421", "http://127.0.0.1:9/v1", {"train"}),
    ],
)
def test_an_evaluation_goes_where_the_server_can_be_reached(
    url: str, judge: str, stages: set[str]
) -> None:
    gate = {"judge": {"url": judge, "model": "j"}} if judge else {}
    chosen = settings(server={"mode": "attach", "urls": [url]}, gate=gate)
    assert set(launchers(chosen)) == stages


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "auto", "s3://bucket", "a:b"])
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(ValueError, match=r"train\.ray\.address|address"):
        settings(train={"launcher": "ray", "ray": {"address": address}})


def test_a_gpu_that_is_shared_and_a_cluster_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gpu_sharing"):
        settings(server={"kind": "vllm", "mode": "attach", "gpu_sharing": "sleep"})
