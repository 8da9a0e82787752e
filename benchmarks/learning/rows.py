"""Rows of a results file, one JSON object a line: read, added, and which of them count."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.learning.runs import LearningRun


def finished(results: Path) -> dict[str, Mapping[str, Any]]:
    """The rows of a results file by key; a line torn by a crash does not count."""
    if not results.exists():
        return {}
    found: dict[str, Mapping[str, Any]] = {}
    for line in results.read_text("utf-8").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found.pop(row["key"], None)
        found[row["key"]] = row
    return found


def of_today(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows whose method is still set as it was when they were measured, and whose base is the
    one on which the protocol was measured last: one that was pretrained again is another."""
    rows = list(rows)
    newest = {(row["base"], row["protocol"]): row["base_hash"] for row in rows}
    return [
        row
        for row in rows
        if row["base_hash"] == newest[row["base"], row["protocol"]]
        and LearningRun.of(row).key == row["key"]
    ]


def add(results: Path, row: Mapping[str, Any]) -> None:
    """Append one row, on a line of its own whatever stands before it."""
    results.parent.mkdir(parents=True, exist_ok=True)
    torn = results.exists() and not results.read_bytes().endswith(b"\n")
    with results.open("a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + json.dumps(row, ensure_ascii=False) + "\n")
