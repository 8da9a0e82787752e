"""docs/results.md and benchmarks/results/ show the committed rows, and labels can be read."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pages
from benchmarks.learning import figures, headline, labels, report
from benchmarks.learning.__main__ import counted
from benchmarks.learning.rows import finished

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((RESULTS / "learning.json").read_text("utf-8"))
    return read


@pytest.fixture(scope="module")
def grouped() -> dict[tuple[str, str, str], list[figures.Row]]:
    rows: dict[tuple[str, str, str], list[figures.Row]] = {}
    for row in counted(finished(RESULTS / "learning.jsonl").values()):
        if row["purpose"] == "report":
            rows.setdefault(figures.place(row), []).append(row)
    return rows


def test_every_page_is_as_it_is_written_from_the_figures(found: dict[str, Any]) -> None:
    texts = report.texts(found)
    for path, text in texts.items():
        assert (RESULTS / path).read_text("utf-8") == text, f"{path}: run make bench-tables"
    assert {f"learning/{path.name}" for path in (RESULTS / "learning").glob("*.md")} < set(texts)


def test_the_document_shows_the_figures(found: dict[str, Any], tmp_path: Path) -> None:
    copy = tmp_path / "results.md"
    copy.write_text(report.PAGE.read_text("utf-8"), "utf-8")
    pages.fill(copy, report.blocks(found))
    assert copy.read_text("utf-8") == report.PAGE.read_text("utf-8"), "run make bench-tables"


def test_the_figures_are_those_of_the_rows(
    found: dict[str, Any], grouped: dict[tuple[str, str, str], list[figures.Row]]
) -> None:
    shown = {
        (base, protocol, method): one
        for base, protocols in found["results"].items()
        for protocol, methods in protocols.items()
        for method, one in methods.items()
    }
    assert shown.keys() == grouped.keys()
    for place, rows in grouped.items():
        assert shown[place]["course"] == figures.course(rows), place
        assert shown[place]["accuracy"][0] == shown[place]["course"][-1]["accuracy"], place


def test_the_headlines_intervals_are_those_of_the_rows(
    found: dict[str, Any], grouped: dict[tuple[str, str, str], list[figures.Row]]
) -> None:
    # Of all intervals these alone: drawing every one again takes a minute.
    rows = grouped[headline.BASE, headline.PROTOCOL, headline.OURS]
    again = json.loads(json.dumps(figures.figures(rows)))
    shown = found["results"][headline.BASE][headline.PROTOCOL][headline.OURS]
    assert {key: shown[key] for key in again} == again
    every = [row for same in grouped.values() for row in same]
    assert json.loads(json.dumps(headline.differences(every))) == found["headline"]


def test_a_difference_is_paired_by_item() -> None:
    def row(right: str) -> figures.Row:
        batch = {"accuracy": [right], "reasoning": right, "locality": right}
        return {"batches": [batch], "base_answers": {"reasoning": "1" * 50 + "0" * 50}}

    one, two = row("1" * 60 + "0" * 40), row("1" * 50 + "0" * 50)
    value, low, high = figures.difference([(one, two)], "accuracy")
    assert value == pytest.approx(0.1)
    assert 0.0 < low < value < high < 0.2  # unpaired, the interval would hold 0
    assert figures.difference([(one, two)], "reasoning_vs_base")[0] == pytest.approx(0.2)
    assert figures.difference([(one, one)], "accuracy") == (0.0, 0.0, 0.0)


def test_what_palorad_is_better_than_is_told_by_intervals() -> None:
    one = dict.fromkeys(headline.COLUMNS, (0.1, 0.05, 0.2))
    other = dict.fromkeys(headline.COLUMNS, (-0.1, -0.2, -0.05))
    alike = dict.fromkeys(headline.COLUMNS, (0.1, -0.1, 0.2))
    told = headline.comparison({"stack": one, "O-LoRA": other, "palora": alike}).splitlines()
    assert len(told) == len(headline.COLUMNS)
    for line in told:
        assert line.endswith(
            "better than palorad (stacked adapters); not told apart from PALoRA; worse than O-LoRA."
        )


@pytest.mark.parametrize("seed", range(20))
def test_no_label_covers_another_or_a_point(seed: int) -> None:
    rng = random.Random(seed)
    bounds = (0.0, 0.0, 700.0, 600.0)
    marks = [(rng.uniform(40, 660), rng.uniform(40, 560)) for _ in range(6)]
    sizes = [(rng.uniform(40, 160), 24.0) for _ in marks]
    boxes = labels.arrange(sizes, marks, 12.0, bounds)
    for n, box in enumerate(boxes):
        assert box[2] - box[0] == pytest.approx(sizes[n][0])
        assert min(box[0] - bounds[0], box[1] - bounds[1]) >= 0
        assert max(box[2] - bounds[2], box[3] - bounds[3]) <= 0
        assert not any(labels.overlap(box, other) for other in boxes[n + 1 :])
        assert not any(box[0] < x < box[2] and box[1] < y < box[3] for x, y in marks)


def test_labels_without_room_are_an_error() -> None:
    with pytest.raises(ValueError, match="find no room"):
        labels.arrange([(200.0, 20.0)], [(50.0, 50.0)], 10.0, (0.0, 0.0, 100.0, 100.0))
