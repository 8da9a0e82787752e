"""The demonstration on another model: its settings, and the files that it drops."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from demo.scenario import MINI, SCENARIOS, SMOL, Scenario
from demo.setup import DemoFailed, DemoOptions, check_parts, fact_files, write_config
from policies.facts.admission import parse_facts
from policies.gate.grading import grade


def test_another_model_has_its_own_suites_and_replay_and_otherwise_the_default(
    tmp_path: Path,
) -> None:
    mini, smol = (
        tomllib.loads(write_config(tmp_path, DemoOptions(scenario=one)).read_text())
        for one in (MINI, SMOL)
    )
    assert smol["model"]["path"] == str(SMOL.model)
    read = [smol["probe"]["skill"], *(suite["path"] for suite in smol["gate"]["suites"])]
    read += [smol["train"]["replay"]["known"], smol["train"]["replay"]["reasoning"]]
    assert all(Path(path).is_relative_to(SMOL.data) for path in read)
    assert not smol["probe"]["path"]
    assert {suite["grader"] for suite in smol["gate"]["suites"]} == {"contains"}
    assert smol["gate"]["locality_margin"] == SMOL.settings["gate"]["locality_margin"]
    for section in ("protection", "intake", "daemon", "keep"):
        assert smol[section] == mini[section]
    kept = {k: v for k, v in smol["train"].items() if k != "replay"}
    assert kept == {k: v for k, v in mini["train"].items() if k != "replay"}


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=list(SCENARIOS))
def test_files_can_be_learnt_and_judged_as_they_are(scenario: Scenario) -> None:
    files = fact_files(DemoOptions(scenario=scenario))
    assert len(files) == scenario.files
    for file in (*files, scenario.false_facts):
        facts = parse_facts(file.read_bytes())
        assert len({fact.id for fact in facts}) == len(facts) >= 12
        for fact in facts:
            assert fact.eval_prompts and not set(fact.eval_prompts) & set(fact.training_prompts)


def test_facts_for_a_model_that_answers_in_sentences_are_sentences() -> None:
    for file in (*fact_files(DemoOptions(scenario=SMOL)), SMOL.false_facts):
        for fact in parse_facts(file.read_bytes()):
            assert fact.answer[0].isupper() and fact.answer.endswith(".")
            assert grade(SMOL.fact_grader, fact.answer, fact.answer)


def test_a_model_that_is_not_there_is_named_with_what_makes_it(tmp_path: Path) -> None:
    absent = Scenario("smol", tmp_path, SMOL.facts, 2, SMOL.false_facts, missing=SMOL.missing)
    with pytest.raises(DemoFailed, match="make smol-known"):
        check_parts(DemoOptions(scenario=absent))
