"""Directions that must hold on the small model: what is spared stays, what is rehearsed stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.learning import tables
from benchmarks.learning.bases import BASES
from benchmarks.learning.harness import Bench, Protocol, Run, perform

pytestmark = pytest.mark.endtoend
SHORT = Protocol("short", batches=2, facts=16, measured=(2,))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    torch.set_num_threads(2)
    bench = Bench(tmp_path_factory.mktemp("bench"))
    BASES["mini"].prepare()
    figures = {}
    for method, rate in (("plain", 0.006), ("null space", 0.006), ("palorad", None)):
        run = Run("mini", "short", method, 5, "selection", rate, problems=150)
        figures[method] = tables.figures([perform(run, BASES["mini"], SHORT, bench)])
    return figures


def test_reasoning_is_kept_where_its_inputs_are_spared(found: dict[str, dict[str, Any]]) -> None:
    plain, spared = found["plain"], found["null space"]
    assert spared["reasoning_vs_reference"][0] > plain["reasoning_vs_reference"][0] + 0.05
    assert spared["leak"] < 5e-3


def test_rehearsal_keeps_earlier_facts_and_what_the_base_knew(
    found: dict[str, dict[str, Any]],
) -> None:
    plain, product = found["plain"], found["palorad"]
    for key in ("recall_batch1", "locality", "reasoning_vs_reference"):
        assert product[key][0] > plain[key][0] + 0.05, key
    assert product["recall_all"][0] > plain["recall_all"][0]
