"""A stage on a cluster: of all attempts, lost or not, exactly one is published, and it is whole."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import StoreConflict
from daemon.children import request
from daemon.children.jobs import NO_ROWS, JobError
from daemon.children.worker import StepContext, Stopped
from daemon.cluster import attempts, child, results
from daemon.cluster.child import StepFailed, follow
from daemon.cluster.node import Ended
from daemon.cluster.ray_cluster import NodeLost, NodeUnusable
from policies.planning import Step
from policies.records import Record
from tests.support.nodes import Cluster, Node, Work, attempt_once, published, training

PIECES = 8  # of `training`: three steps, two publications of two pieces, the report


class Asked(Record):
    adapters: Path
    served: Path
    records: Path
    seed: int = 0


class AskedToJudge(Record):
    answers: Path
    evaluation: dict[str, Any]
    judge: dict[str, Any] | None = None


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "POLL_S", 0.0)


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    prepare(tmp_path)
    for name in ("adapters", "served"):
        (tmp_path / name).mkdir()
    return tmp_path / "work" / "1-train"


def prepare(root: Path, seed: int = 0) -> None:
    """What the daemon does before each start."""
    workdir = root / "work" / "1-train"
    workdir.mkdir(parents=True, exist_ok=True)
    asked = Asked(
        adapters=root / "adapters", served=root / "served", records=root / "records", seed=seed
    )
    request.write(workdir, asked, {"facts": ['{"id": "a"}']})


def both(root: Path) -> tuple[list[str], list[str]]:
    return published(root / "adapters"), published(root / "served")


def by(number: str) -> tuple[list[str], list[str]]:
    return [f"adapters by attempt {number}"], [f"served by attempt {number}"]


# --- lost nodes --------------------------------------------------------------------------------


def test_without_trouble_one_attempt_is_published(workdir: Path, tmp_path: Path) -> None:
    cluster = Cluster(training)
    report = attempt_once(cluster, Step.TRAIN, workdir)
    assert both(tmp_path) == by("0001")
    (served,) = (tmp_path / "served").iterdir()
    assert report["served"] == {"name": served.name, "sha256": report["served"]["sha256"]}  # type: ignore[index]
    assert len(cluster.nodes) == 1


def test_the_next_attempt_goes_on_from_the_checkpoint_of_a_lost_one(
    workdir: Path, tmp_path: Path
) -> None:
    cluster = Cluster(training, lost={1: 2})
    with pytest.raises(NodeLost):
        attempt_once(cluster, Step.TRAIN, workdir)
    assert both(tmp_path) == ([], [])
    attempt_once(cluster, Step.TRAIN, workdir)
    assert [(node.path / "steps").read_text() for node in cluster.nodes] == ["1 2 ", "3 "]
    assert both(tmp_path) == by("0002")


@pytest.mark.parametrize("before", range(PIECES))
@pytest.mark.parametrize("after", [0, 1, 3, PIECES])
def test_a_node_that_only_seemed_lost_publishes_nothing(
    before: int, after: int, workdir: Path, tmp_path: Path
) -> None:
    """It goes on at every moment before, while and after the next attempt does its work."""
    cluster = Cluster(training, lost={1: before})
    with pytest.raises(NodeLost):
        attempt_once(cluster, Step.TRAIN, workdir)
    zombie = cluster.nodes[0]
    former = cluster.script

    def beside(attempt: Path) -> Work:
        for number, _ in enumerate(former(attempt)):
            if number < after:
                zombie.piece()
            yield

    cluster.script = beside
    attempt_once(cluster, Step.TRAIN, workdir)
    assert both(tmp_path) == by("0002")
    zombie.finish()
    assert both(tmp_path) == by("0002")
    assert not attempts.is_current(zombie.path)
    assert attempts.is_current(cluster.nodes[1].path)


def test_what_a_node_finished_unseen_is_taken_instead_of_another_attempt(
    workdir: Path, tmp_path: Path
) -> None:
    cluster = Cluster(training, lost={1: 2})
    with pytest.raises(NodeLost):
        attempt_once(cluster, Step.TRAIN, workdir)
    cluster.nodes[0].finish()
    attempt_once(cluster, Step.TRAIN, workdir)
    assert len(cluster.nodes) == 1
    assert both(tmp_path) == by("0001")


def test_a_report_on_another_request_is_not_taken(workdir: Path, tmp_path: Path) -> None:
    cluster = Cluster(training, lost={1: 2})
    with pytest.raises(NodeLost):
        attempt_once(cluster, Step.TRAIN, workdir)
    cluster.nodes[0].finish()
    prepare(tmp_path, seed=1)
    attempt_once(cluster, Step.TRAIN, workdir)
    assert both(tmp_path) == by("0002")


def test_only_the_newest_attempts_are_kept(workdir: Path, tmp_path: Path) -> None:
    cluster = Cluster(training, lost=dict.fromkeys((1, 2, 3, 4), 1))
    for _ in range(4):
        with pytest.raises(NodeLost):
            attempt_once(cluster, Step.TRAIN, workdir)
    attempt_once(cluster, Step.TRAIN, workdir)
    kept = sorted(path.name for path in (workdir / "attempts").iterdir() if path.is_dir())
    assert kept == ["0004", "0005"]
    assert both(tmp_path) == by("0005")


# --- a leased child that dies --------------------------------------------------------------------


class Died(BaseException):
    """The leased child is killed here."""


@pytest.mark.parametrize("at", [1, 2])
def test_a_child_that_died_while_it_published_is_followed_by_one_that_ends_it(
    at: int, workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, publish = 0, results._publish

    def dying(source: Path, parent: Path) -> None:
        nonlocal count
        publish(source, parent)
        count += 1
        if count == at:
            raise Died

    cluster = Cluster(training)
    monkeypatch.setattr(results, "_publish", dying)
    with pytest.raises(Died):
        attempt_once(cluster, Step.TRAIN, workdir)
    monkeypatch.undo()
    attempt_once(cluster, Step.TRAIN, workdir)
    assert both(tmp_path) == by("0001")
    assert len(cluster.nodes) == 1


@pytest.mark.parametrize("folder", ["adapters", "served"])
def test_a_torn_result_is_not_published_but_made_once_more(
    folder: str, workdir: Path, tmp_path: Path
) -> None:
    def torn(attempt: Path) -> Work:
        yield from training(attempt)
        if attempt.name == "0001":
            (file,) = (attempt / folder).glob("[!.]*/adapter_config.json")
            file.write_text("torn")

    cluster = Cluster(torn)
    with pytest.raises(StoreConflict, match="has changed"):
        attempt_once(cluster, Step.TRAIN, workdir)
    assert published(tmp_path / "served") == []
    attempt_once(cluster, Step.TRAIN, workdir)
    assert published(tmp_path / "served") == ["served by attempt 0002"]


def test_the_facts_of_a_stage_that_is_done_are_gone_from_its_attempts(workdir: Path) -> None:
    cluster = Cluster(training)
    attempt_once(cluster, Step.TRAIN, workdir)
    assert "facts" in request.read(cluster.nodes[0].path)
    request.remove_rows(workdir)
    with pytest.raises(request.RowsMissing):
        request.read(cluster.nodes[0].path)
    assert not [path for path in workdir.rglob("facts.jsonl") if path.exists()]


# --- what the node says --------------------------------------------------------------------------


class Ends(Node):
    """A node whose child has ended as a test says."""

    def __init__(self, path: Path, ended: Ended) -> None:
        super().__init__(path, iter(()))
        self.ended = ended

    def poll(self) -> Ended:
        return self.ended


class EndsSo(Cluster):
    """A cluster all of whose nodes end so."""

    def __init__(self, ended: Ended, error: JobError | None = None) -> None:
        super().__init__(training)
        self.ended, self.error = ended, error

    def submit(self, step: str, attempt: Path) -> Node:
        if self.error is not None:
            (attempt / "error.json").write_text(self.error.model_dump_json())
        (attempt / "log").write_text("the last words\n")
        return Ends(attempt, self.ended)


@pytest.mark.parametrize("final", [True, False])
def test_an_error_of_the_step_comes_back_as_it_was_said(final: bool, workdir: Path) -> None:
    said = JobError(kind="ProbeMismatch", error="the probe is another base's", final=final)
    with pytest.raises(StepFailed, match="another base's") as raised:
        attempt_once(EndsSo(Ended("n", 0), said), Step.TRAIN, workdir)
    assert (raised.value.kind, raised.value.final) == ("ProbeMismatch", final)


def test_a_child_that_died_on_the_node_names_node_signal_and_log(workdir: Path) -> None:
    with pytest.raises(StepFailed, match=r"^on n7: .*SIGKILL.*the last words.*0001/log") as raised:
        attempt_once(EndsSo(Ended("n7", -signal.SIGKILL)), Step.TRAIN, workdir)
    assert raised.value.kind == "ChildDied"
    assert not raised.value.final


def test_a_full_disk_of_a_node_is_a_full_disk(workdir: Path) -> None:
    with pytest.raises(OSError, match="the disk is full") as raised:
        attempt_once(EndsSo(Ended("n", 73)), Step.TRAIN, workdir)
    assert raised.value.errno == errno.ENOSPC


def test_a_node_that_does_not_see_the_folder_says_what_to_do(workdir: Path) -> None:
    with pytest.raises(NodeUnusable, match=r"n7 does not see .*state_dir must lie on a folder"):
        attempt_once(EndsSo(Ended("n7", None)), Step.TRAIN, workdir)


def test_asked_to_stop_it_asks_the_node_and_leaves_no_word(workdir: Path) -> None:
    class Slow(Cluster):
        def submit(self, step: str, attempt: Path) -> Node:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().submit(step, attempt)

    cluster = Slow(training)
    with StepContext(workdir) as desk, pytest.raises(Stopped):
        follow(cluster, Step.TRAIN, desk)
    assert cluster.nodes[0].cancelled


def test_how_far_the_node_is_is_told_as_of_any_child(workdir: Path) -> None:
    def slow(attempt: Path) -> Work:
        for done in (1, 2):
            with (attempt / "progress.jsonl").open("a") as lines:
                lines.write(f'{{"stage": "train", "done": {done}, "total": 2}}\n')
            yield
        yield from training(attempt)

    attempt_once(Cluster(slow), Step.TRAIN, workdir)
    told = [json.loads(line) for line in (workdir / "progress.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["done"]) for line in told] == [
        ("waiting for a node", 0),
        ("train", 1),
        ("train", 2),
    ]


# --- records and answers -------------------------------------------------------------------------


def test_records_are_handed_on_and_new_ones_take_their_place(workdir: Path, tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "old").write_text("of before")

    def recording(attempt: Path) -> Work:
        folder = Path(json.loads((attempt / "request.json").read_text())["records"])
        assert (folder / "old").read_text() == "of before"
        (folder / "new").write_text("of now")
        (folder / "old").unlink()
        yield from training(attempt)

    cluster = Cluster(recording, lost={1: 1})
    with pytest.raises(NodeLost):
        attempt_once(cluster, Step.TRAIN, workdir)
    assert [p.name for p in (tmp_path / "records").iterdir()] == ["old"]
    attempt_once(cluster, Step.TRAIN, workdir)
    assert [p.name for p in (tmp_path / "records").iterdir()] == ["new"]


MODELS = {role: {"name": role, "sha256": role * 12} for role in ("base", "candidate")}


@pytest.fixture
def judging(tmp_path: Path) -> Path:
    workdir = tmp_path / "work" / "1-evaluate"
    workdir.mkdir(parents=True)
    asked = AskedToJudge(answers=tmp_path / "answers", evaluation={**MODELS, "live": None})
    request.write(workdir, asked, NO_ROWS)
    kept = tmp_path / "answers" / "basebasebase" / "suite.jsonl"
    kept.parent.mkdir(parents=True)
    kept.write_text("old\n")
    return workdir


def asking(attempt: Path) -> Iterator[None]:
    folder = Path(json.loads((attempt / "request.json").read_text())["answers"]) / "basebasebase"
    for line in ("one\n", "two\n"):
        with (folder / "suite.jsonl").open("a") as answers:
            answers.write(line)
        yield
    (folder / "suite.suite.json").write_text("{}")
    (attempt / "report.json").write_text("{}")
    yield


def test_answers_of_a_lost_attempt_are_used_and_a_zombie_s_never_are(
    judging: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "answers" / "basebasebase"
    cluster = Cluster(asking, lost={1: 1})
    with pytest.raises(NodeLost):
        attempt_once(cluster, Step.EVALUATE, judging)
    assert (kept / "suite.jsonl").read_text() == "old\n"
    attempt_once(cluster, Step.EVALUATE, judging)
    cluster.nodes[0].finish()
    assert (kept / "suite.jsonl").read_text() == "old\none\none\ntwo\n"
    assert (kept / "suite.suite.json").read_text() == "{}"


def test_answers_that_were_erased_meanwhile_do_not_come_back(judging: Path, tmp_path: Path) -> None:
    kept = tmp_path / "answers" / "basebasebase" / "suite.jsonl"

    def erased(attempt: Path) -> Work:
        yield from asking(attempt)
        kept.write_text("")
        kept.write_text("another\n")

    attempt_once(Cluster(erased), Step.EVALUATE, judging)
    assert kept.read_text() == "another\n"
