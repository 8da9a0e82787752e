"""The bench of methods: it asks nothing that was trained, and its figures mean what they say."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters import lora
from adapters.plans import TrainPlan, TrainReport
from benchmarks.learning import bases, figures, harness, runs, tables
from benchmarks.learning.__main__ import RESULTS, chosen_rate, counted, sweep
from benchmarks.learning.bases import BASES
from benchmarks.learning.batches import Purpose, batch, contradicting
from benchmarks.learning.harness import Bench, perform
from benchmarks.learning.judge import Judge, Retriever
from benchmarks.learning.methods import METHODS
from benchmarks.learning.rows import add, finished, of_today
from benchmarks.learning.runs import PROTOCOLS, LearningRun, Protocol
from mini import world
from mini.splits import Split
from policies.facts.updates import Updates

NAME = "model.layers.0.mlp.gate_proj"


def row(
    method: str = "plain LoRA",
    seed: int = 1,
    *,
    accuracy: Sequence[str] = ("1111",),
    reasoning: str = "1111",
    base_answers: str = "1111",
    **changes: Any,
) -> dict[str, Any]:
    measured = {
        "batch": len(accuracy),
        "accuracy": list(accuracy),
        "accuracy_ood": ["0101"] * len(accuracy),
        "reasoning": reasoning,
        "locality": "1110",
        "norm": 1.0,
        "leak": 0.0,
        "train_seconds": 1.0,
        "steps": 10,
    }
    return {
        "key": f"{method}-{seed}",
        "base_hash": "hash of its weights",
        "base": "mini",
        "protocol": "one",
        "method": method,
        "seed": seed,
        "purpose": "report",
        "rate": None,
        "examples": None,
        "description": "what it does",
        "machine": "here",
        "base_answers": {"reasoning": base_answers, "locality": "1111"},
        "expert_answers": {"reasoning": base_answers, "locality": "1111"},
        "batches": [measured],
        **changes,
    }


def test_no_paraphrase_that_is_asked_is_trained() -> None:
    made = batch(1, 48, 1, "report")
    assert len(made.facts) == 48
    trained = {paraphrase for fact in made.facts for paraphrase in fact.training_prompts}
    assert trained.isdisjoint(one.prompt for one in (*made.near, *made.ood))
    assert {one.prompt for one in made.near}.isdisjoint(one.prompt for one in made.ood)


def test_selection_report_seeds_and_batches_have_no_subject_in_common() -> None:
    made = [batch(n, 24, s, p) for n in (1, 2) for s in (1, 2) for p in ("selection", "report")]
    subjects = [{fact.subject for fact in one.facts} for one in made]
    assert len(set.union(*subjects)) == sum(map(len, subjects))
    assert made[0] == batch(1, 24, 1, "selection")


def test_contradicting_facts_change_what_the_base_knows_and_may_replay() -> None:
    made = contradicting(1, 48, 1, "report")
    known = {(f.relation, f.subject): f for f in world.known() if f.split is Split.REPLAY}
    for fact in made.facts:
        assert fact.relation is not None
        assert fact.subject is not None
        assert known[fact.relation, fact.subject].answer != fact.answer
    updates = Updates(made.facts)
    replayed = BASES["mini"].known
    changed = [one for one in replayed if updates.change(one.prompt, one.completion)]
    assert 48 <= len(changed) < len(replayed) / 4


def test_where_one_skill_is_protected_the_others_are_asked() -> None:
    half = BASES["half"]
    assert half.protected is not None
    assert set(half.asked_skill).isdisjoint(half.protected)
    assert set(half.asked_skill) | set(half.protected) == set(half.made.skill)
    asked = Judge.of(half, "report", 60, 1).problems
    assert {problem.family for problem in asked} == set(half.asked_skill)


def test_reasoning_is_paired_with_the_reference() -> None:
    found = figures.figures([row(reasoning="1100", base_answers="1110")])
    assert found["reasoning_vs_base"][0] == pytest.approx(2 / 3, abs=1e-4)
    same = figures.figures([row(reasoning="110100", base_answers="110100")])
    assert same["reasoning_vs_base"] == (1.0, 1.0, 1.0)


def test_accuracy_is_over_all_batches_and_retention_of_the_first() -> None:
    found = figures.figures([row(accuracy=("1100", "1111"))])
    assert found["accuracy"][0] == 0.75
    assert found["locality_vs_base"][0] == 0.75
    assert found["retention_batch_1"][0] == 0.5
    assert found["accuracy_ood"][0] == 0.5


def test_an_interval_covers_what_seeds_and_items_leave_open() -> None:
    seeds = [row(seed=n, accuracy=("1" * (60 + 10 * n) + "0" * (40 - 10 * n),)) for n in range(3)]
    value, low, high = figures.figures(seeds)["accuracy"]
    assert value == pytest.approx(0.7)
    assert low < 0.63
    assert high > 0.77


def test_only_report_seeds_become_figures_and_a_worse_method_is_dominated() -> None:
    rows = [row(), row("palora", reasoning="1000"), row("random", purpose="selection")]
    methods = figures.summary(rows)["results"]["mini"]["one"]
    assert set(methods) == {"plain LoRA", "palora"}
    assert methods["palora"]["dominated_by"] == ["plain LoRA"]
    assert methods["plain LoRA"]["dominated_by"] == []
    assert "| palora | default |" in tables.table(methods)


def test_a_stream_is_told_with_its_goals_and_what_misses_them_in_bold() -> None:
    rows = [
        row("palorad", reasoning="1110", protocol="ten"),
        row("plain LoRA", protocol="ten"),
        row("palorad, small batch"),
    ]
    told = tables.streams(figures.summary(rows)["results"]).splitlines()[2:]
    assert len(told) == 1
    found = figures.figures(rows[:1])
    for key, goal in figures.GOALS.items():
        shown = f"{100 * found[key][0]:.1f}"
        assert (f"| **{shown}** [" in told[0]) == (found[key][0] < goal)
        assert shown in told[0]


def test_a_rate_is_chosen_on_selection_seeds_alone() -> None:
    rows = [
        row(purpose="selection", rate=0.001, accuracy=("1000",)),
        row(purpose="selection", rate=0.003, reasoning="1110"),
        row(purpose="selection", rate=0.01, reasoning="0000"),
        row(rate=0.02),
    ]
    assert chosen_rate(rows, "mini", "plain LoRA") == 0.003
    assert chosen_rate([], "mini", "plain LoRA") == METHODS["plain LoRA"].rates[1]
    assert chosen_rate(rows, "mini", "palorad") is None


def test_rates_that_are_asked_for_are_swept_instead_of_each_methods_own() -> None:
    def swept(rates: list[float] | None) -> list[tuple[str, float | None]]:
        given = argparse.Namespace(base=["mini"], rates=rates, problems=400)
        return [(run.method, run.rate) for run in sweep(given, ["plain LoRA", "palorad"])]

    assert swept(None) == [("plain LoRA", rate) for rate in METHODS["plain LoRA"].rates]
    assert swept([0.1, 0.2]) == [("plain LoRA", 0.1), ("plain LoRA", 0.2)]


@pytest.mark.parametrize("order", [1, -1])
def test_of_rates_that_do_equally_well_the_one_with_more_accuracy_on_ood_paraphrases(
    order: int,
) -> None:
    (told,) = row()["batches"]
    rows = [
        row(purpose="selection", rate=rate, batches=[{**told, "accuracy_ood": [ood]}])
        for rate, ood in ((0.001, "0001"), (0.003, "0111"), (0.01, "0011"))
    ]
    assert chosen_rate(rows[::order], "mini", "plain LoRA") == 0.003


def test_results_survive_a_torn_line(tmp_path: Path) -> None:
    results = tmp_path / "learning.jsonl"
    add(results, row("plain LoRA"))
    with results.open("a") as file:
        file.write('{"key": "tor')
    add(results, row("palora"))
    assert set(finished(results)) == {"plain LoRA-1", "palora-1"}
    assert json.loads(results.read_text().splitlines()[0])["method"] == "plain LoRA"


def test_a_stream_goes_on_with_the_batch_that_it_had_not_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off, ended and not noted, or as one of more batches: nothing is learnt twice, and the row
    says on which machine each part was."""
    machines = ["first"]
    monkeypatch.setattr(harness, "_here", lambda: machines[-1])
    learnt: list[int] = []
    dies_at: set[int] = set()

    def edit(plan: TrainPlan, out: Path) -> TrainReport:
        number = 1 + len(plan.replay) // 4
        assert [one.name for one in plan.start] == [f"adapter-{number - 1}"] * (number > 1)
        if number in dies_at:
            dies_at.remove(number)
            raise KeyboardInterrupt
        learnt.append(number)
        down, up = torch.full((2, 256), 1e-6), torch.full((640, 2), float(number))
        lora.write(out, lora.Lora({NAME: (down, up)}, {NAME: 1.0}), plan.base_name)
        return TrainReport.model_construct(steps=number, seconds=0.0, leak=0.0, free=16)

    methods = {"edit": replace(METHODS["palorad"], edit=edit)}
    monkeypatch.setattr(harness, "METHODS", methods)
    monkeypatch.setattr(runs, "METHODS", methods)
    monkeypatch.setattr(bases, "MOST_KNOWN", 4)
    monkeypatch.setattr(Bench, "keeps", lambda *_: {"reasoning": "1", "locality": "1"})
    short = Protocol("ten", 4, 4, (1, 2, 4))
    longer = Protocol("long", 6, 4, (1, 2, 4, 6))
    monkeypatch.setattr(harness, "PROTOCOLS", {"ten": short, "long": longer})
    run = LearningRun("mini", short, "edit", 1, "report", problems=2)
    whole = perform(run, BASES["mini"], Bench(tmp_path / "whole"))
    assert learnt == [1, 2, 3, 4]

    learnt.clear()
    dies_at |= {2, 4}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            perform(run, BASES["mini"], Bench(tmp_path / "cut"))
        machines.append("second")
    bench = Bench(tmp_path / "cut")
    for _ in range(2):
        again = perform(run, BASES["mini"], bench)
        assert learnt == [1, 2, 3, 4]
        assert again["batches"] == whole["batches"]
        assert again["machine"] == "first to batch 1, then second"

    bench.settle(run, BASES["mini"])
    machines.append("third")
    onward = replace(run, protocol=longer)
    row = perform(onward, BASES["mini"], bench)
    assert learnt == [1, 2, 3, 4, 5, 6]
    assert row["batches"][:-1] == whole["batches"]
    assert row["machine"] == "first to batch 1, then second to batch 4, then third"
    assert whole["machine"] == "first"
    bench.settle(onward, BASES["mini"])
    assert not list((tmp_path / "cut").iterdir())


@pytest.mark.parametrize(
    ("name", "learns", "small"),
    [
        ("retrained from scratch", [4, 12, 20], set()),
        ("palorad", [4, 4, 4, 20], set()),
        ("palorad, small batch", [4, 4, 4, 20], {4}),
        ("warm start, small batch", [4] * 5, {4}),
    ],
)
def test_what_is_retrained_from_scratch_learns_where_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, learns: list[int], small: set[int]
) -> None:
    """From the bare base, all facts so far; what would be replaced before it is measured is left
    out, and only few facts are learnt in small batches."""
    learnt: list[int] = []

    def edit(plan: TrainPlan, out: Path) -> TrainReport:
        assert len(plan.facts) == 4 or not (plan.start or plan.lineage or plan.replay)
        learnt.append(len(plan.facts))
        assert (plan.config.sub_steps > 1) == (len(plan.facts) in small)
        down, up = torch.full((2, 256), 1e-6), torch.zeros(640, 2)
        lora.write(out, lora.Lora({NAME: (down, up)}, {NAME: 1.0}), plan.base_name)
        return TrainReport.model_construct(steps=1, seconds=0.0, leak=0.0, free=16)

    method = replace(
        METHODS[name], edit=edit, settings={**METHODS[name].settings, "large_run_facts": 10}
    )
    methods = {"edit": replace(method, retrain_at=20) if method.retrain_at else method}
    monkeypatch.setattr(harness, "METHODS", methods)
    monkeypatch.setattr(runs, "METHODS", methods)
    monkeypatch.setattr(bases, "MOST_KNOWN", 4)
    monkeypatch.setattr(Bench, "keeps", lambda *_: {"reasoning": "1", "locality": "1"})
    run = LearningRun("mini", Protocol("five", 5, 4, (1, 3, 5)), "edit", 1, "report", problems=2)
    found = perform(run, BASES["mini"], Bench(tmp_path))
    assert learnt == learns
    assert [one["batch"] for one in found["batches"]] == [1, 3, 5]


def test_the_retriever_finds_the_sentence_that_a_question_is_about() -> None:
    made = batch(2, 48, 1, "report")
    retriever = Retriever([asked.statement for asked in made.near])
    found = [retriever.best(asked.prompt) == asked.statement for asked in made.near]
    assert sum(found) / len(found) > 0.9


def test_a_run_with_few_examples_is_a_row_of_its_own() -> None:
    methods = figures.summary([row(), row(examples=64)])["results"]["mini"]["one"]
    assert set(methods) == {"plain LoRA", "plain LoRA, 64 traces"}


def test_with_few_examples_known_the_probe_too_has_seen_no_others() -> None:
    few = BASES["mini"].knowing(64)
    assert len(few.skill) == 64
    assert few.reasoning == few.skill
    assert few.probe_dir != BASES["mini"].probe_dir
    run = LearningRun("mini", PROTOCOLS["ten"], "palorad", 1, "report")
    assert run.key != replace(run, examples=64).key


def test_the_default_misses_the_goals_by_least_wherever_others_were_measured() -> None:
    keeps = {"accuracy": ("1111", "1111"), "reasoning": "1110"}
    learns = {"accuracy": ("0011", "1111"), "reasoning": "1111"}
    rows = [
        row("a", protocol="ten", **keeps),
        row("b", protocol="ten", **learns),
        row("a", protocol="forty", **keeps),
        row("b", protocol="forty", **learns),
        row("once", protocol="ten"),
        row("alone", protocol="ten", base="wide"),
    ]
    assert figures.summary(rows)["default_method"] == "a"
    assert figures.summary([row("alone", protocol="ten")])["default_method"] is None


def test_the_course_of_a_stream_and_the_rates_of_a_sweep_are_told() -> None:
    first, last = row()["batches"][0], row(accuracy=("1111", "0011"))["batches"][0]
    rows = [row(batches=[first, last], machine=name) for name in ("a", "a", "b")]
    rows[2]["batches"][0] = {**first, "train_seconds": 100.0}
    (one, two) = figures.figures(rows)["course"]
    assert (one["batch"], one["seconds"], one["accuracy"]) == (1, 1.0, 1.0)
    assert (two["batch"], two["accuracy"], two["retention_batch_1"]) == (2, 0.75, 1.0)
    swept = [row(purpose="selection", rate=rate) for rate in (0.006, 0.003)]
    points = figures.summary(swept)["sweeps"]["mini"]["plain LoRA"]
    assert [one["rate"] for one in points] == [0.003, 0.006]


def test_a_row_counts_as_long_as_its_method_is_set_the_same() -> None:
    run = LearningRun("mini", PROTOCOLS["one"], "plain LoRA", 1, "report")
    measured = {**row(problems=400), "key": run.key}
    assert of_today([measured, row(problems=400)]) == [measured]
    again = {**measured, "base_hash": "pretrained again"}
    assert of_today([measured, again]) == [again]
    longer = LearningRun("mini", PROTOCOLS["ten"], "plain LoRA", 1, "report")
    elsewhere = {**again, "protocol": "ten", "key": longer.key}
    assert of_today([measured, elsewhere]) == [measured, elsewhere]


def test_every_measured_row_still_counts() -> None:
    """A change of names, of a default or of what a setting means would throw hours away unseen.

    Rows that are marked were measured with other settings of a method of the same name.
    """
    rows = [json.loads(line) for line in (RESULTS / "learning.jsonl").read_text().splitlines()]
    lost = []
    for number, one in enumerate(rows, start=1):
        run, superseded = LearningRun.of(one), one.get("superseded", False)
        same = json.loads(json.dumps(run.settings)) == one["settings"]
        if not same == (run.key == one["key"]) == (not superseded):
            lost.append(f"line {number}: {run.method}")
    assert not lost
    assert len(rows) - sum("superseded" in one for one in rows) >= 343


@pytest.mark.parametrize(("stages", "first"), [(0, "1"), (2, "3")])
def test_a_base_that_is_missing_is_trained_from_where_it_was_left(
    stages: int, first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[list[str]] = []

    def train(arguments: list[str]) -> None:
        asked.append(arguments)
        raise InterruptedError

    monkeypatch.setattr(bases.pretrain, "main", train)
    base = BASES["wide"]
    if stages:
        base.bare_dir.mkdir(parents=True)
        (base.bare_dir / "made.json").write_text(json.dumps({"stages": [{}] * stages}))
    with pytest.raises(InterruptedError):
        base.prepare()
    (given,) = asked
    assert given[:2] == ["--model", "wide"]
    assert given[-2:] == ["--first", first]


def test_reported_is_the_rate_that_a_sweep_chose() -> None:
    def measured(purpose: Purpose, seed: int, rate: float, accuracy: str) -> dict[str, Any]:
        run = LearningRun("mini", PROTOCOLS["one"], "plain LoRA", seed, purpose, rate)
        return {**row(problems=400, accuracy=(accuracy,)), **run.named, "key": run.key}

    reported = [measured("report", 1, rate, "1111") for rate in (0.003, 0.006)]
    swept = [measured("selection", 0, 0.003, "1000"), measured("selection", 0, 0.006, "1111")]
    assert counted(reported) == reported
    assert counted([*reported, *swept]) == [reported[1], *swept]
