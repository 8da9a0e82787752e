"""The demonstration's judgement of itself: figures, goals, configuration, picture."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.ledger.records import Event
from demo.follow import stages
from demo.picture import draw
from demo.report import (
    BaseFigures,
    DemoReport,
    Interval,
    Rejected,
    RevisionReport,
    goals,
    ratio_interval,
    results_table,
)
from demo.setup import DemoFailed, DemoOptions, check_parts, dump, fact_files, write_config

ONE = Interval(value=1.0, low=0.98, high=1.02)


def revision(number: int, **changed: object) -> RevisionReport:
    fields: dict[str, object] = {
        "number": number,
        "batch": f"file{number}" if number else None,
        "verdict": "pass" if number else None,
        "accuracy": {"file1": float(number > 0), "file2": float(number > 1)},
        "accuracy_all": number / 2,
        "reasoning": 0.9,
        "reasoning_vs_base": ONE,
        "locality": 0.97,
        "seconds": {"train": 10.0} if number else {},
    }
    return RevisionReport.model_validate(fields | changed)


GOOD = [revision(0), revision(1), revision(2)]
REFUSED = Rejected(file="false", verdict="fail", reasons=["reasoning lost"], live_unchanged=True)


def missed(
    revisions: list[RevisionReport], rejected: list[Rejected], rollback_ok: bool = True
) -> list[str]:
    return [g.name for g in goals(revisions, rejected, rollback_ok) if not g.reached]


def test_all_goals_reached() -> None:
    assert missed(GOOD, [REFUSED]) == []


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("accuracy", {"accuracy_all": 0.899}),
        ("accuracy", {"verdict": "fail"}),
        ("reasoning", {"reasoning_vs_base": Interval(value=0.989, low=0.98, high=1.0)}),
        ("locality", {"locality": 0.89}),
    ],
)
def test_each_figure_can_miss_its_goal(name: str, last: dict[str, object]) -> None:
    assert missed([*GOOD[:2], revision(2, **last)], [REFUSED]) == [name]


def test_goals_beside_the_figures() -> None:
    assert missed([revision(0, accuracy_all=0.06), *GOOD[1:]], [REFUSED]) == ["before"]
    assert missed(GOOD, []) == ["rejection"]
    assert missed(GOOD, [REFUSED.model_copy(update={"verdict": "pass"})]) == ["rejection"]
    assert missed(GOOD, [REFUSED.model_copy(update={"live_unchanged": False})]) == ["rejection"]
    assert missed(GOOD, [REFUSED], rollback_ok=False) == ["rollback"]


def test_nothing_measured_reaches_nothing() -> None:
    nan = float("nan")
    unknown = revision(
        2,
        accuracy_all=nan,
        locality=nan,
        reasoning_vs_base=Interval(value=nan, low=nan, high=nan),
    )
    assert missed([*GOOD[:2], unknown], [REFUSED]) == ["accuracy", "reasoning", "locality"]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_ratio_lies_in_its_interval(pairs: list[tuple[bool, bool]]) -> None:
    reference, candidate = [r for r, _ in pairs], [c for _, c in pairs]
    found = ratio_interval(reference, candidate)
    if not any(reference):
        assert found.value != found.value
    else:
        assert found.value == pytest.approx(sum(candidate) / sum(reference))
        assert found.low <= found.value <= found.high or len(pairs) < 30


def test_the_same_answers_leave_no_doubt() -> None:
    answers = [True] * 90 + [False] * 10
    assert ratio_interval(answers, answers) == Interval(value=1.0, low=1.0, high=1.0)


def test_dump_is_read_back_as_it_was() -> None:
    tree = {"a": 1, "b": {"c": 'x"y\\z', "d": {"e": [1, 2], "f": True}}, "g": [{"h": 0.5}, {}]}
    assert tomllib.loads(dump(tree)) == tree


def test_the_demonstrations_configuration_is_the_embedded_default(tmp_path: Path) -> None:
    tree = tomllib.loads(write_config(tmp_path, DemoOptions()).read_text())
    default = tomllib.loads((Path(__file__).parents[2] / "config.toml").read_text())
    changed = {
        "train": {"relearn": 0},
        "intake": {"stable_s": 0.5},
        "gate": {},
        "protection": {},
    }
    for section, changes in changed.items():
        mine, theirs = tree[section], {**default[section], **changes}
        assert {k: v for k, v in mine.items() if not isinstance(v, dict | list)} == {
            k: v for k, v in theirs.items() if not isinstance(v, dict | list)
        }
    assert Path(tree["state_dir"]).is_relative_to(tmp_path)
    assert tree["server"]["urls"] != default["server"]["urls"]


def test_bad_options_get_one_line(tmp_path: Path) -> None:
    with pytest.raises(DemoFailed, match="embedded or vllm"):
        check_parts(DemoOptions(server="triton"))
    with pytest.raises(DemoFailed, match="same name"):
        fact_files(DemoOptions(facts=(tmp_path / "a.jsonl", tmp_path / "b" / "a.jsonl")))


def test_picture_and_table_show_every_revision(tmp_path: Path) -> None:
    report = DemoReport(
        server="embedded",
        revisions=GOOD,
        base=BaseFigures(base_reasoning=0.9, expert_reasoning=0.91, locality=0.98),
        rejected=[REFUSED],
        rollback_ok=True,
        items={},
        examples=[],
        goals=goals(GOOD, [REFUSED], True),
        seconds={"total": 1.0},
        versions={},
        machine={},
    )
    draw(report, tmp_path / "out" / "demo.png")
    assert (tmp_path / "out" / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert results_table(report).row_count == len(GOOD)
    assert DemoReport.model_validate_json(report.model_dump_json()) == report


def test_seconds_are_those_between_the_events() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)

    def event(after: float, kind: str, subject: str = "plan:1", **payload: object) -> Event:
        moment = at + timedelta(seconds=after)
        return Event(
            seq=1, at=moment, kind=kind, subject=subject, payload=payload, prev_hash="", hash=""
        )

    events = [
        event(2, "batch.admitted", "batch"),
        event(3, "stage.started", stage="probe"),
        event(10, "stage.started", stage="train"),
        event(14, "stage.failed"),
        event(20, "stage.started", stage="train"),
        event(21, "plan.trained"),
        event(30, "stage.started", stage="evaluate"),
        event(37, "plan.passed"),
    ]
    assert stages(at, events) == {"intake": 2.0, "probe": 7.0, "train": 11.0, "evaluate": 7.0}
