"""The committed figures of the gate keep what the gate's page promises."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gate.__main__ import DISCORDANCE, DROPS, MARGINS, cell
from benchmarks.gate.tables import fill
from policies.gate.limits import PRESETS
from policies.gate.sequential import Design

ROOT = Path(__file__).parents[2]
RESULT: dict[str, Any] = json.loads((ROOT / "benchmarks/results/gate.json").read_text("utf-8"))
CELLS: list[dict[str, Any]] = RESULT["cells"]
FEWEST_RUNS = 10_000
ERRORS = 3.0
MOST_ITEMS = 0.75


def standard_error(bound: float, runs: int) -> float:
    return math.sqrt(bound * (1 - bound) / runs)


def test_every_cell_that_can_exist_was_measured() -> None:
    asked = {
        (discordance, margin, drop)
        for discordance in DISCORDANCE
        for margin in MARGINS
        for drop in DROPS
        if max(margin, drop) <= discordance
    }
    assert {(c["discordance"], c["margin"], c["drop"]) for c in CELLS} == asked
    assert all(c["runs"] >= FEWEST_RUNS for c in CELLS)


@pytest.mark.parametrize("key", ["false_accept", "false_reject"])
def test_errors_stay_within_their_bounds(key: str) -> None:
    bound = RESULT["alpha"] if key == "false_accept" else 1 - RESULT["power"]
    assert any(c[key] > 0 for c in CELLS)
    for c in CELLS:
        assert c[key] <= bound + ERRORS * standard_error(bound, c["runs"]), c


def test_a_harmless_candidate_needs_three_quarters_of_the_fixed_size_at_most() -> None:
    ratios = [c["items_ratio"] for c in CELLS if c["drop"] == 0]
    assert ratios
    assert max(ratios) <= MOST_ITEMS


def test_a_shared_draw_lets_no_more_through_than_alpha() -> None:
    for row in RESULT["shared_draws"]:
        bound = RESULT["alpha"]
        assert row["passed_too_much"] <= bound + ERRORS * standard_error(bound, row["judged"])


def test_the_figures_are_those_of_todays_presets() -> None:
    for name, limits in PRESETS.items():
        measured = RESULT["presets"][name]
        for key in ("alpha", "beta", "reasoning_margin", "retention_margin", "learnt_share"):
            assert measured[key] == getattr(limits, key), (name, key)


def test_a_cell_comes_out_again_as_it_was_measured() -> None:
    """The same seed with fewer runs: within chance of the committed figure."""
    design, runs = Design(0.03, RESULT["alpha"], 1 - RESULT["power"]), 1000
    (stored,) = (
        c for c in CELLS if (c["discordance"], c["margin"], c["drop"]) == (0.05, 0.03, 0.03)
    )
    again = cell(design, 0.05, 0.03, runs)
    error = standard_error(RESULT["alpha"], runs)
    assert abs(again["passed"] - stored["passed"]) <= 4 * error
    assert again["items"] == pytest.approx(stored["items"], rel=0.1)


def test_the_page_shows_the_committed_figures(tmp_path: Path) -> None:
    page, copy = ROOT / "benchmarks/results/gate.md", tmp_path / "gate.md"
    copy.write_text(page.read_text("utf-8"), "utf-8")
    fill(RESULT, copy)
    assert copy.read_text("utf-8") == page.read_text("utf-8")
