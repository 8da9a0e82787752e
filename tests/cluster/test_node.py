"""What a node runs: a real child in an attempt's folder, ended when the attempt is superseded."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from daemon.children import request
from daemon.children.jobs import held, last_progress, last_word
from daemon.cluster import attempts, node
from daemon.cluster.node import Ended, run_step
from policies.records import Record

STEPS = """
import time
from daemon.children.jobs import Progress
from policies.records import Record

class Report(Record):
    said: str

def train(desk):
    for done in range(4000 if "long" in desk.request else 1):
        desk.progress(Progress(stage="train", done=done + 1))
        time.sleep(0.02)
    return Report(said=desk.request)
"""


class Asked(Record):
    what: str


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> attempts.NodeAttempt:
    (tmp_path / "steps_for_a_node.py").write_text(STEPS)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    )
    monkeypatch.setattr(node, "LOOK_S", 0.1)
    return begin(tmp_path / "1-train", "long")


def begin(workdir: Path, what: str) -> attempts.NodeAttempt:
    workdir.mkdir(exist_ok=True)
    request.write(workdir, Asked(what=what), {})
    return attempts.begin(workdir, ())


def run(attempt: attempts.NodeAttempt, ended: list[Ended]) -> threading.Thread:
    environment = {"PALORAD_STEPS": "steps_for_a_node"}
    thread = threading.Thread(
        target=lambda: ended.append(run_step("train", str(attempt.path), environment))
    )
    thread.start()
    return thread


def test_a_step_is_done_in_the_folder_of_its_attempt(begun: attempts.NodeAttempt) -> None:
    attempt, ended = begin(begun.path.parents[1], "short"), list[Ended]()
    run(attempt, ended).join(60)
    assert [one.code for one in ended] == [0]
    said = last_word(attempt.path)
    assert said is not None
    assert said.report is not None
    assert "short" in said.report["said"]


def test_the_child_of_a_superseded_attempt_is_ended(begun: attempts.NodeAttempt) -> None:
    ended = list[Ended]()
    thread = run(begun, ended)
    end = time.monotonic() + 60
    while last_progress(begun.path) is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    attempts.begin(begun.path.parents[1], ())
    thread.join(60)
    assert [one.code for one in ended] == [None]
    assert not held(begun.path)


def test_a_superseded_attempt_is_not_begun(begun: attempts.NodeAttempt, tmp_path: Path) -> None:
    attempts.begin(begun.path.parents[1], ())
    assert run_step("train", str(begun.path), {}).code is None
    assert run_step("train", str(tmp_path / "nowhere" / "0001"), {}).code is None
    assert not (begun.path / "log").exists()
