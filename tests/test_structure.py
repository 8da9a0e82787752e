"""What a reader of the tree may rely on: one name for one thing, and files read in a sitting."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRODUCT = ("daemon", "adapters", "policies")
LONGEST = 350
ALONE = Path("daemon/serving/alias.py")  # vLLM loads it, so it is one file that needs no other


def sources() -> Iterator[Path]:
    for package in PRODUCT:
        yield from sorted((ROOT / package).rglob("*.py"))


def test_a_class_has_its_name_to_itself() -> None:
    places = defaultdict(list)
    for path in sources():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert len(places) > 100
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_a_file_is_read_in_a_sitting() -> None:
    long = {
        str(relative): lines
        for path in sources()
        if (lines := len(path.read_text().splitlines())) > LONGEST
        and (relative := path.relative_to(ROOT)) != ALONE
    }
    assert long == {}
