"""The long run fails where memory, disk or ticks grow although nothing has to."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.durability.soak import out_of_bounds


def samples(batches: int = 1000, **growing: float) -> list[dict[str, Any]]:
    """A sample after every ten batches; `growing` by so much over the whole run."""
    start = {
        "own_mb": 85.0,
        "sqlite_mb": 2.0,
        "ledger_mb": 1.0,
        "disk_mb": 2.0,
        "tick_ms_p99": 300.0,
        "standstill_ms_max": 200.0,
    }
    return [
        {"batch": number}
        | {
            key: value + growing.get(key, 0.0) * number / batches + number // 10 % 3 * 0.1
            for key, value in start.items()
        }
        for number in range(10, batches + 1, 10)
    ]


def test_what_stays_flat_is_within_its_bounds() -> None:
    assert out_of_bounds(samples()) == []


@pytest.mark.parametrize(
    ("key", "by"),
    [
        ("own_mb", 40.0),
        ("disk_mb", 100.0),
        ("sqlite_mb", 15.0),
        ("tick_ms_p99", 800.0),
        ("standstill_ms_max", 900.0),
    ],
)
def test_what_grows_is_told(key: str, by: float) -> None:
    assert out_of_bounds(samples(**{key: by}))


def test_a_ledger_that_grows_may_be_cached() -> None:
    assert out_of_bounds(samples(sqlite_mb=15.0, ledger_mb=9.0)) == []
