"""docs/training.md says how many steps a run takes: as many as it does."""

from __future__ import annotations

import re
from pathlib import Path

from adapters.config import TrainConfig
from adapters.schedule import steps_needed

PAGE = Path(__file__).resolve().parents[2] / "docs/training.md"


def test_the_table_of_steps_is_what_the_schedule_gives() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE.read_text(), re.MULTILINE)
    small = TrainConfig()
    large = small.large_batch()
    given = [
        (new, earlier, steps_needed(small, new, earlier), steps_needed(large, new, earlier))
        for new, earlier in ((int(row[0]), int(row[1])) for row in rows)
    ]
    assert [tuple(map(int, row)) for row in rows] == given
    assert len(rows) == 4


def test_the_table_of_presets_is_what_they_are() -> None:
    text = PAGE.read_text()
    small = TrainConfig()
    large = small.large_batch()
    for words, key in (
        ("new facts (k)", "new_per_step"),
        ("earlier facts (half at most)", "replayed_per_step"),
        ("known facts", "known_per_step"),
        ("reasoning traces", "reasoning_per_step"),
    ):
        assert f"| {words} | {getattr(small, key)} | {getattr(large, key)} |" in text
    b = f"b = {small.base_steps} (small) or {large.base_steps} (large)"
    assert b in " ".join(text.split())
