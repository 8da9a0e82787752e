"""Edits are drawn without repetition, learnt as a stream, and asked about with and without it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters import lora
from benchmarks.edits import asking, drift, figures, sets, streams
from benchmarks.edits.asking import EditAsker
from benchmarks.edits.material import Known, RealBase, SkillItem
from benchmarks.edits.methods import METHODS, EditMethod
from benchmarks.edits.streams import EditProtocol, EditRun, asker_of, perform
from policies.errors import ConfigError
from policies.records import Example
from tests.support.fitted import SKILL, Fitted

LINES: Mapping[str, dict[str, Any]] = {
    "wikibigedit": {
        "prompt": "Where is Ola?",
        "target_new": "Bim",
        "subject": "Ola",
        "rephrase_prompt": "In which place is Ola?",
        "locality_prompt": "Where is Oli?",
        "locality_ground_truth": "Cur",
    },
    "zsre": {
        "src": "Where is Ola?",
        "pred": "Cur",
        "alt": "Bim",
        "subject": "Ola",
        "rephrase": "In which place is Ola?",
        "loc": "nq question: where is Oli",
        "loc_ans": "Cur",
    },
}
SMALL = EditProtocol("two", 2, 3, (1, 2))
MEASURED = {*figures.BY_BATCH, *figures.OVER_ALL, "reasoning", "general_kl", "length", "seconds"}


def edits(count: int) -> list[sets.Edit]:
    return [
        sets.Edit(
            prompt=f"What is the colour of thing {n}?",
            answer=("red", "blue", "green")[n % 3],
            subject=f"thing {n}",
            rephrased=f"Which colour has thing {n}?",
            near=f"What is the size of thing {n}?",
            near_answer="small",
        )
        for n in range(count)
    ]


@pytest.fixture
def base(llama: Fitted) -> RealBase:
    known = tuple(Known(one.prompt, one.completion, f"{one.completion}.") for one in SKILL)
    return RealBase(
        name="tiny",
        model_dir=llama.model_dir,
        sha256=llama.hash,
        probe_dir=llama.folder / "probe",
        replay=known[:6],
        far=known[6:],
        traces=tuple(Example(prompt=e.prompt, completion=e.completion) for e in SKILL[:6]),
        problems=tuple(SkillItem(e.prompt, e.completion) for e in SKILL[6:12]),
        grader="contains",
    )


@pytest.fixture
def asker(base: RealBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EditAsker:
    monkeypatch.setattr(streams, "RUNS", tmp_path)
    monkeypatch.setattr(drift, "TEXTS", 2)
    monkeypatch.setattr(asking, "ANSWER_TOKENS", 4)
    monkeypatch.setattr(asking, "PROBLEM_TOKENS", 4)
    monkeypatch.setattr(streams, "RANK", 4)
    monkeypatch.setattr(streams, "RANK_BUDGET", 8)
    monkeypatch.setitem(streams.PROTOCOLS, SMALL.name, SMALL)
    plain = EditMethod.config
    monkeypatch.setattr(
        EditMethod, "config", lambda *given: plain(*given).model_copy(update={"steps": 2})
    )
    return asker_of(base)


@pytest.mark.parametrize("dataset", LINES)
def test_a_set_is_read_and_a_broken_line_is_named(dataset: sets.Dataset, tmp_path: Path) -> None:
    path = tmp_path / f"{dataset}.jsonl"
    path.write_text(json.dumps(LINES[dataset]) + "\n")
    (edit,) = sets.read(tmp_path, dataset)
    assert (edit.prompt, edit.answer, edit.near_answer) == ("Where is Ola?", "Bim", "Cur")
    assert edit.near.lower().startswith("where is oli")
    assert edit.fact.eval_prompts == ("In which place is Ola?",)
    path.write_text(json.dumps(LINES[dataset]) + "\n{}\n")
    with pytest.raises(ConfigError, match="line 2"):
        sets.read(tmp_path, dataset)


def test_a_stream_is_drawn_by_its_seed_and_names_no_subject_twice() -> None:
    many = [*edits(30), *edits(30)]
    drawn = sets.batches(many, 5, 6, seed=1)
    assert [len(one) for one in drawn] == [6] * 5
    subjects = [edit.subject for one in drawn for edit in one]
    assert len(set(subjects)) == 30
    assert drawn == sets.batches(many, 5, 6, seed=1) != sets.batches(many, 5, 6, seed=2)
    with pytest.raises(ConfigError, match="fewer than 36 subjects"):
        sets.batches(many, 6, 6, seed=1)


@pytest.mark.parametrize(
    "method",
    [
        "palorad",
        "sentences",
        "palora",
        "stack",
        "plain LoRA",
        "LocFT-BF",
        "AlphaEdit",
        "retrieval",
        "frozen",
    ],
)
def test_a_stream_is_learnt_and_measured(method: str, base: RealBase, asker: EditAsker) -> None:
    rate = 1.0 if METHODS[method].rates else None
    run = EditRun("tiny", "wikibigedit", "two", method, 1, rate)
    row = perform(run, base, edits(12), asker)
    assert [one["batch"] for one in row["batches"]] == [1, 2]
    last = row["batches"][-1]
    assert set(last) >= MEASURED
    assert [len(one) for one in last["generalization"]] == [3, 3]
    assert len(last["locality_far"]) == len(base.far)
    assert len(last["reasoning"]) == len(row["base_reasoning"]) == len(base.problems)
    assert (last["general_kl"] > 0) == METHODS[method].learns
    row["base_reasoning"] = "1" * len(base.problems)  # a tiny base solves none
    found = figures.summary([row])["results"]["tiny"]["wikibigedit"]["two"][method]
    assert all(0.0 <= v <= 1.0 for key in figures.BY_BATCH for v in found[key])
    assert not list(streams.RUNS.glob("stream-*"))


def test_without_an_update_nothing_differs_from_the_base(base: RealBase, asker: EditAsker) -> None:
    row = perform(EditRun("tiny", "zsre", "two", "frozen", 1), base, edits(12), asker)
    last = row["batches"][-1]
    assert last["reasoning"] == row["base_reasoning"]
    assert set(last["locality_near"]) == {"1"}
    assert last["length"][0] == last["length"][1]
    assert row["batches"][0]["seconds"] < 1.0


def test_a_run_that_was_cut_off_resumes_after_its_last_batch(
    base: RealBase, asker: EditAsker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = EditRun("tiny", "wikibigedit", "two", "palorad", 1)
    whole = perform(run, base, edits(12), asker)
    trained: list[Path] = []
    train = METHODS["palorad"].train

    def cut_off(plan: Any, **given: Any) -> Any:
        if len(trained) == 1:
            trained.append(given["out"])
            raise KeyboardInterrupt
        trained.append(given["out"])
        return train(plan, **given)

    monkeypatch.setitem(METHODS, "palorad", replace(METHODS["palorad"], train=cut_off))
    with pytest.raises(KeyboardInterrupt):
        perform(run, base, edits(12), asker)
    resumed = perform(run, base, edits(12), asker)
    assert [path.name for path in trained] == ["adapter-1", "adapter-2", "adapter-2"]
    for one, other in zip(whole["batches"], resumed["batches"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_rate_is_chosen_by_what_is_learnt_and_kept() -> None:
    def row(rate: float, right: str, far: str) -> dict[str, Any]:
        one = {
            **{key: [right] for key in figures.BY_BATCH},
            **dict.fromkeys(figures.OVER_ALL, far),
            **{"reasoning": "11", "general_kl": 0.1, "length": [1.0, 1.0], "seconds": 1.0},
        }
        place = {"base": "b", "dataset": "zsre", "protocol": "one", "method": "plain LoRA"}
        rest = {"base_reasoning": "11", "batches": [one], "machine": "m"}
        return {**place, **rest, "seed": 0, "rate": rate}

    rows = [row(0.5, "1000", "1111"), row(1.0, "1110", "1111"), row(2.0, "1111", "1000")]
    assert figures.rates(rows) == {("b", "zsre", "plain LoRA"): 1.0}
    assert figures.summary(rows)["results"] == {}


@pytest.mark.parametrize(("method", "edited"), [("LocFT-BF", 1), ("AlphaEdit", 1)])
def test_a_rival_adds_to_its_own_matrices_and_keeps_what_it_added_before(
    method: str, edited: int, base: RealBase, asker: EditAsker, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[lora.Lora] = []
    train = METHODS[method].train

    def watched(plan: Any, **given: Any) -> Any:
        report = train(plan, **given)
        made.append(lora.read(given["out"]))
        return report

    monkeypatch.setitem(METHODS, method, replace(METHODS[method], train=watched))
    perform(EditRun("tiny", "wikibigedit", "two", method, 1, 1.0), base, edits(12), asker)
    first, second = made
    assert len(first.factors) == len(second.factors) == edited
    for name in first.factors:
        assert name.endswith("down_proj")
        old, new = first.delta(name), second.delta(name)
        assert 0 < float((new - old).norm()) < 2 * float(new.norm())
        assert float((new * old).sum()) > 0.1 * float(old.norm()) ** 2
