"""The gate's simulation keeps what docs/gate.md promises, and the page shows its figures.

Seeds are fixed: a figure here changes only where the test or the simulation does.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gate.__main__ import DISCORDANCE, DROPS, MARGINS, SEED, cell, harmless
from benchmarks.gate.draws import shared_draws
from benchmarks.gate.simulation import Gates, outcomes, sequential
from benchmarks.gate.tables import fill
from policies.gate.limits import PRESETS
from policies.gate.sequential import Design, fixed_size

ROOT = Path(__file__).parents[2]
RESULT: dict[str, Any] = json.loads((ROOT / "benchmarks/results/gate.json").read_text("utf-8"))
CELLS: list[dict[str, Any]] = RESULT["cells"]
BALANCED = PRESETS["balanced"]
RUNS = 2000
MOST_ITEMS = 0.75


def design(margin: float) -> Design:
    return Design(margin, BALANCED.alpha, BALANCED.beta)


def within(rate: float, bound: float, runs: int) -> bool:
    """Not above the bound by more than three standard errors of so many runs."""
    return rate <= bound + 3 * math.sqrt(bound * (1 - bound) / runs)


@pytest.mark.parametrize(
    ("discordance", "margin"), [(0.02, 0.02), (0.05, 0.03), (0.05, 0.02), (0.1, 0.03)]
)
def test_the_simulated_gate_keeps_its_errors_and_its_items(
    discordance: float, margin: float
) -> None:
    worse = cell(design(margin), discordance, margin, RUNS)
    assert worse["passed"] > 0
    assert within(worse["passed"], BALANCED.alpha, RUNS), worse
    same = cell(design(margin), discordance, 0.0, RUNS)
    assert within(same["failed"], BALANCED.beta, RUNS), same
    assert same["passed"] > 0.95
    assert same["items_ratio"] <= MOST_ITEMS


def test_the_check_of_errors_sees_a_test_that_is_too_lenient() -> None:
    """The same simulation at twice alpha does not pass for alpha."""
    lenient = Design(0.03, 2 * BALANCED.alpha, BALANCED.beta)
    draw = outcomes(np.random.default_rng(SEED), 0.05, 0.03)
    gates: Gates = sequential(lenient, draw, RUNS, math.ceil(2.5 * fixed_size(design(0.03), 0.05)))
    assert not within(gates.passed, BALANCED.alpha, RUNS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_whole_gate_fails_a_harmless_candidate_no_oftener_than_beta(name: str) -> None:
    runs = 400
    gate = harmless(PRESETS[name], 4, runs)
    assert within(gate["failed"], PRESETS[name].beta, runs)
    assert gate["passed"] > 0.6


def test_a_shared_draw_lets_no_more_through_than_alpha() -> None:
    for row in shared_draws(design(BALANCED.reasoning_margin), 12, SEED):
        assert row["judged"] > 100
        assert within(row["passed_too_much"], BALANCED.alpha, row["judged"]), row


# --- the committed figures are those of this code ----------------------------------------------


def test_every_cell_that_can_exist_is_among_the_figures() -> None:
    asked = {
        (discordance, margin, drop)
        for discordance in DISCORDANCE
        for margin in MARGINS
        for drop in DROPS
        if max(margin, drop) <= discordance
    }
    assert {(c["discordance"], c["margin"], c["drop"]) for c in CELLS} == asked


def test_the_figures_are_those_of_todays_presets() -> None:
    for name, limits in PRESETS.items():
        measured = RESULT["presets"][name]
        for key in ("alpha", "beta", "reasoning_margin", "retention_margin", "learnt_share"):
            assert measured[key] == getattr(limits, key), (name, key)


@pytest.mark.parametrize("drop", [0.0, 0.03])
def test_a_cell_comes_out_again_as_it_was_measured(drop: float) -> None:
    """The same seed with fewer runs: within chance of the committed figure."""
    (stored,) = (
        c for c in CELLS if (c["discordance"], c["margin"], c["drop"]) == (0.05, 0.03, drop)
    )
    again = cell(design(0.03), 0.05, drop, 1000)
    for key in ("passed", "failed"):
        error = math.sqrt(max(stored[key] * (1 - stored[key]), 1e-4) / 1000)
        assert abs(again[key] - stored[key]) <= 4 * error
    assert again["items"] == pytest.approx(stored["items"], rel=0.1)


def test_the_page_shows_the_committed_figures(tmp_path: Path) -> None:
    page, copy = ROOT / "benchmarks/results/gate.md", tmp_path / "gate.md"
    copy.write_text(page.read_text("utf-8"), "utf-8")
    fill(RESULT, copy)
    assert copy.read_text("utf-8") == page.read_text("utf-8")
