"""What init makes of answers: what a base surely knows, in its own words, in disjoint parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daemon.cli.doctor import check_config
from daemon.cli.suite_check import gate_findings
from daemon.config.settings import Settings
from daemon.onboarding import first_day, model_look
from daemon.onboarding.asking import Interview
from daemon.onboarding.config_file import ServerChoice
from daemon.onboarding.first_day import ANSWERS, DATA, MADE, FirstDay, Wishes
from daemon.onboarding.own_problems import own_problems
from daemon.training.child import read_examples
from policies.errors import RequestRefused, Ungradable
from policies.facts.admission import parse_facts
from tests.support.onboarding import TableBase, checkpoint, everything_shipped

SHARE = 0.2
SERVER = ServerChoice(
    kind="embedded", attach=False, url="http://127.0.0.1:8421", name="base", rank=128, slow=True
)


def made(root: Path, base: TableBase, **wishes: Any) -> FirstDay:
    """An init of a new model in `root / "first"`, or of the one that is there."""
    model = root / "model"
    if not model.exists():
        checkpoint(model)
    folder = root / "first"
    folder.mkdir(exist_ok=True)
    return first_day.make(
        Wishes(folder, **wishes),
        model_look.look(model, SHARE),
        SERVER,
        Interview(base, folder / ANSWERS),
    )


def rows(root: Path, name: str) -> list[dict[str, Any]]:
    text = (root / "first" / DATA / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def problems(root: Path, count: int, **more: object) -> Path:
    path = root / "problems.jsonl"
    lines = ({"prompt": f"Solve {n} plus {n}.", "answer": 2 * n} | more for n in range(count))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_daemon_s_settings_accept_what_was_made_and_every_suite_is_good(tmp_path: Path) -> None:
    found = made(tmp_path, TableBase(everything_shipped()))
    assert found.usable
    assert sorted(
        str(path.relative_to(tmp_path / "first"))
        for path in (tmp_path / "first").rglob("*.*")
        if path.name != ANSWERS
    ) == sorted(MADE)
    settings = Settings.load(tmp_path / "first" / "config.toml", {})
    assert settings.model.path == tmp_path / "model"
    assert [(f.well, f.advice) for f in gate_findings(settings)] == [(True, "")] * 2
    assert check_config(tmp_path / "first" / "config.toml", settings) == 0
    assert list(read_examples(settings.probe.skill, "solution"))
    assert list(read_examples(settings.train.replay.known, "answer"))
    assert len(parse_facts((tmp_path / "first" / "first.jsonl").read_text())) == 6


def test_no_part_holds_what_another_holds(tmp_path: Path) -> None:
    made(tmp_path, TableBase(everything_shipped()))
    names = [Path(name).stem for name in MADE if name.startswith(DATA)]
    prompts = [row["prompt"] for name in names for row in rows(tmp_path, name)]
    assert len(set(prompts)) == len(prompts) > 1000


def test_a_wrong_answer_in_either_paraphrase_is_nothing_known(tmp_path: Path) -> None:
    known = everything_shipped()
    known["What is the capital of Italy?"] = "Milan"
    known["Tell me the capital of Spain."] = "Seville"
    made(tmp_path, TableBase(known))
    text = "".join(
        json.dumps(rows(tmp_path, name)) for name in ("known-replay", "locality", "known-report")
    )
    assert "capital of France" in text
    assert "capital of Italy" not in text
    assert "capital of Spain" not in text


def test_what_users_ask_is_known_where_the_base_never_wavers(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    asked = [f"Who runs branch {n}?" for n in range(40)]
    log.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in asked))
    said = {one: f"Person P{n}" for n, one in enumerate(asked)}

    def wavers(prompt: str, sample: int) -> str | None:
        return "somebody else" if prompt == asked[7] and sample == 2 else None

    made(tmp_path, TableBase(everything_shipped() | said, drawn=wavers), logs=(log,))
    lines = [r for n in ("known-replay", "locality", "known-report") for r in rows(tmp_path, n)]
    kept = {r["prompt"]: r for r in lines if "runs branch" in r["prompt"]}
    assert set(asked) - set(kept) == {asked[7]}
    told = {str(r.get("answer") or r["answers"][0]) for p, r in kept.items() if p == asked[3]}
    assert told <= {"Person P3", "It is Person P3."}
    assert {r["answer"] for r in rows(tmp_path, "known-replay")} <= {
        f"It is {answer}." for answer in (everything_shipped() | said).values()
    }


def test_the_base_s_own_solutions_are_replayed_and_only_right_ones(tmp_path: Path) -> None:
    file = problems(tmp_path, 300, solution="somebody's")
    known = everything_shipped() | {f"Solve {n} plus {n}.": str(2 * n) for n in range(0, 300, 2)}
    found = made(tmp_path, TableBase(known), problems=file, grader="contains")
    traces = rows(tmp_path, "skill")
    assert all(row["solution"].startswith("It is ") for row in traces) or len(traces) >= 50
    assert {row["solution"] for row in traces if row["solution"] != "somebody's"} <= {
        f"It is {2 * n}." for n in range(0, 300, 2)
    }
    assert found.suites[0].sight.right == pytest.approx(0.5, abs=0.1)


def test_a_skill_that_the_base_cannot_do_is_said_and_ends_with_one(tmp_path: Path) -> None:
    found = made(tmp_path, TableBase(everything_shipped()), problems=problems(tmp_path, 200))
    assert not found.usable
    told = " ".join(one.what for one in found.weak if one.fatal)
    assert "solved no problem" in told
    assert "blind" in told


def test_kinds_of_problems_that_the_base_cannot_do_are_left_out(tmp_path: Path) -> None:
    known = {p: a for p, a in everything_shipped().items() if " minus " not in p}
    found = made(tmp_path, TableBase(known))
    assert found.usable
    assert any("difference (0.0 %)" in one.what for one in found.weak)
    assert not any("minus" in row["prompt"] for row in rows(tmp_path, "reasoning-gate"))


def test_a_base_that_knows_nothing_gets_no_suite_of_known_facts(tmp_path: Path) -> None:
    found = made(tmp_path, TableBase({one.prompt: one.answers[0] for one in own_problems()}))
    assert found.usable
    assert found.known == 0
    settings = Settings.load(tmp_path / "first" / "config.toml", {})
    assert [suite.name for suite in settings.gate.suites] == ["reasoning"]
    assert settings.train.replay.known is None
    assert any("nothing watches known facts" in one.what for one in found.weak)


def test_few_questions_get_a_wider_margin_and_that_is_said(tmp_path: Path) -> None:
    known = everything_shipped() | {f"Solve {n} plus {n}.": str(2 * n) for n in range(200)}
    found = made(tmp_path, TableBase(known), problems=problems(tmp_path, 200), grader="contains")
    (reasoning, _) = found.suites
    assert reasoning.sight.margin > 0.02
    assert any("cannot rule out a drop of 2 pp" in one.what for one in found.weak)
    settings = Settings.load(tmp_path / "first" / "config.toml", {})
    assert settings.gate.suites[0].margin == reasoning.sight.margin


def test_what_is_there_is_never_overwritten_without_force(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    mine = tmp_path / "first" / "config.toml"
    mine.write_text("# mine")
    with pytest.raises(RequestRefused, match=r"config\.toml would be overwritten"):
        made(tmp_path, TableBase(everything_shipped()))
    assert mine.read_text() == "# mine"
    made(tmp_path, TableBase(everything_shipped()), force=True)
    assert "palorad init" in mine.read_text()


def test_a_second_init_asks_nothing(tmp_path: Path) -> None:
    first = made(tmp_path, TableBase(everything_shipped()))
    again = TableBase({})
    assert made(tmp_path, again, force=True) == first
    assert again.asked == []


def test_a_grader_that_cannot_read_an_answer_is_refused_before_anything_is_asked(
    tmp_path: Path,
) -> None:
    base = TableBase(everything_shipped())
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "Who?", "answer": "Ann"}\n')
    with pytest.raises(Ungradable):
        made(tmp_path, base, problems=file, grader="number")
    assert base.asked == []
