"""Directions that must hold on the small model: what is protected or replayed is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from benchmarks.learning import figures
from benchmarks.learning.bases import BASES
from benchmarks.learning.harness import Bench, perform
from benchmarks.learning.runs import LearningRun, Protocol

pytestmark = pytest.mark.endtoend
ONCE = Protocol("once", batches=1, facts=16, measured=(1,))
TWICE = Protocol("twice", batches=2, facts=16, measured=(1, 2))
RUNS = (("plain LoRA", TWICE, 0.006), ("null space", ONCE, 0.006), ("replay", TWICE, 0.006))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    torch.set_num_threads(2)
    bench = Bench(tmp_path_factory.mktemp("bench"))
    BASES["mini"].prepare()
    found = {}
    for method, protocol, rate in RUNS:
        run = LearningRun("mini", protocol, method, 5, "selection", rate, problems=150)
        found[method] = perform(run, BASES["mini"], bench)
    return found


def after(row: Mapping[str, Any], batches: int) -> dict[str, float]:
    """The figures after so many batches."""
    found = figures.figures([{**row, "batches": row["batches"][:batches]}])
    keys = ("accuracy", "retention_batch_1", "reasoning_vs_base", "locality")
    return {key: found[key][0] for key in keys}


def test_at_equal_accuracy_more_reasoning_is_kept_where_its_inputs_are_protected(
    rows: dict[str, dict[str, Any]],
) -> None:
    plain, protected = after(rows["plain LoRA"], 1), after(rows["null space"], 1)
    assert protected["accuracy"] >= plain["accuracy"] - 0.05
    assert protected["reasoning_vs_base"] > plain["reasoning_vs_base"] + 0.05
    assert rows["null space"]["batches"][0]["leak"] < 5e-3


def test_replay_keeps_earlier_facts_and_what_the_base_knew(
    rows: dict[str, dict[str, Any]],
) -> None:
    plain, replayed = after(rows["plain LoRA"], 2), after(rows["replay"], 2)
    for key in ("retention_batch_1", "locality", "reasoning_vs_base"):
        assert replayed[key] > plain[key] + 0.05, key
    assert replayed["accuracy"] > plain["accuracy"]
