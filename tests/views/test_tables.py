"""What status and history show: target and active, in these words."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.console import Console, RenderableType

from daemon.children.jobs import Progress
from daemon.cli.tables import history_view, status_view
from daemon.views.status import (
    DaemonView,
    HistoryView,
    ReplicaView,
    RetractionView,
    RevisionView,
    StageView,
    StatusView,
    SuiteView,
)
from policies.records import PlanKind

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TARGET = RevisionView(
    number=2,
    name="palora-000002-bb",
    plan=7,
    kind=PlanKind.LEARN,
    parent=1,
    adapters=2,
    rank=8,
    target=True,
    created_at=NOW,
)
FORMER = TARGET.model_copy(update={"number": 1, "name": "palora-000001-aa", "target": False})
LAGGING = ReplicaView(
    url="http://a", ready=False, target=TARGET.name, active=FORMER.name, reason="it still loads"
)


def text(view: RenderableType) -> list[str]:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(view)
    return captured.get().splitlines()


def line(lines: list[str], part: str) -> str:
    return next(line for line in lines if part in line)


def status(*retractions: RetractionView, stages: tuple[StageView, ...] = ()) -> list[str]:
    daemon = DaemonView(pid=1, server="vllm", replicas=(LAGGING,), trouble=("the disk is full",))
    return text(
        status_view(
            StatusView(
                running=True,
                paused=False,
                daemon=daemon,
                target=TARGET,
                stages=stages,
                batches=(),
                facts=3,
                quarantined=0,
                not_learnt=0,
                retractions=retractions,
            )
        )
    )


def test_status_shows_the_target_and_what_each_replica_has_active() -> None:
    lines = status()
    assert "target: revision 2, palora-000002-bb, 2 adapters, rank 8" in lines
    assert [c.strip() for c in line(lines, "replica").strip("┃ ").split("┃")] == [
        "replica",
        "ready",
        "target",
        "active",
        "verified",
    ]
    row = line(lines, "http://a ")
    assert row.index(TARGET.name) < row.index(FORMER.name)
    assert "http://a: it still loads" in lines
    assert "the disk is full" in lines


def test_status_shows_the_stage_of_the_plan_under_way_and_how_far_it_is() -> None:
    progress = Progress(stage="train", done=3, total=9, loss=0.5)
    training = StageView(
        plan=4, kind=PlanKind.LEARN, stage="train", started_at=NOW, progress=progress
    )
    said = line(status(stages=(training,)), "plan 4 (learn): train since")
    assert said.rstrip().endswith("train 3 of 9, loss 0.500")


def test_a_fact_that_is_retracted_but_served_is_said_loudly() -> None:
    served = RetractionView(handle="r-1", fact="f", state="still served", asked_at=NOW, plan=9)
    assert "STILL SERVED" in line(status(served), "palorad certificate r-1")


def test_a_blind_suite_and_a_grader_that_was_found_are_said() -> None:
    view = StatusView(
        running=False,
        paused=False,
        daemon=None,
        target=TARGET,
        stages=(),
        batches=(),
        facts=3,
        quarantined=0,
        not_learnt=0,
        suites=(
            SuiteView(suite="known", grader="contains", grader_because="it fits"),
            SuiteView(suite="sums", grader="final", blind="base has 0.0 % right"),
            SuiteView(suite="other", grader="final"),
        ),
    )
    said = text(status_view(view))
    assert line(said, "graders") == "graders that fit the base's answers: known by 'contains'"
    assert line(said, "suite sums") == "suite sums: blind: base has 0.0 % right"
    assert not any("suite other" in one for one in said)


def test_history_marks_the_target_alone() -> None:
    lines = text(history_view(HistoryView(revisions=(TARGET, FORMER), events=())))
    assert line(lines, TARGET.name).rstrip("│ ").endswith("target")
    assert "target" not in line(lines, FORMER.name)
