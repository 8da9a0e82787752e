"""A thousand batches through the real daemon, ledger, store and embedded server, watched.

    python -m benchmarks.durability --parts soak

The daemon is a forked process with its children; it starts the real embedded server over a tiny
model. Only training and judging are stood in for: adapters come from a library of random ones, and
the verdict from the text. By its wall clock an hour passes from one batch to the next, so that
[keep] has its turn: of what it does not keep for ever, the disk holds days, however long the run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.support.soaking import Soak

BATCHES: Final = 1000
SAMPLED: Final = 10
TICK_MS: Final = 1000.0
LONG: Final = 300
"""Shorter runs are still filling what is filled once."""
CACHE_MB: Final = 64.0
"""The ledger's page cache (`daemon/ledger/database.py`), which holds no more than the ledger."""
READERS_MB: Final = 6.0
"""Connections that read beside it, and VACUUM's."""
OWN_MB: Final = 5.0
"""By how much the daemon may grow beside SQLite in the last third of a run: what its allocators do
not find again, after the passing work of some 330 batches. A request that takes memory by the
facts that it holds costs 14 MB there."""
DISK_MB: Final = 3.0
"""Archives, and adapters that the next night's pruning takes."""
RESULTS: Final = Path(__file__).parents[1] / "results" / "soak.jsonl"


def run(
    batches: int = BATCHES, samples: Path | None = RESULTS, sampled: int = SAMPLED
) -> dict[str, Any]:
    """All batches; the figures. Raises `AssertionError` where a promise is broken, or something
    grows that is to stay flat."""
    with tempfile.TemporaryDirectory(prefix="palorad-soak-") as folder:
        soak = Soak(Path(folder))
        rows = []
        began = time.monotonic()
        try:
            for number in range(1, batches + 1):
                soak.batch(number)
                if number % sampled == 0 or number == batches:
                    rows.append({"batch": number, **soak.sample()})
                    print(json.dumps(rows[-1]), flush=True)
            promises = soak.promises()
        finally:
            soak.close()
    if samples is not None:
        samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if broken := out_of_bounds(rows):
        raise AssertionError("\n".join(broken))
    return figures(rows, promises) | {
        "soak_batches": batches,
        "soak_minutes": round((time.monotonic() - began) / 60, 1),
    }


def out_of_bounds(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What did not stay within its bounds, one line each."""
    lines = [
        f"batch {row['batch']}: {what} {row[key]} ms"
        for row in rows
        for key, what in (("tick_ms_p99", "a tick"), ("standstill_ms_max", "the loop stood"))
        if row[key] > TICK_MS
    ]
    lines += [
        f"batch {row['batch']}: SQLite takes {row['sqlite_mb']} MB"
        for row in rows
        if (row["sqlite_mb"] or 0) > min(CACHE_MB, 2 * row["ledger_mb"]) + READERS_MB
    ]
    if rows[-1]["batch"] < LONG:
        return lines
    grown = {key: _grown(rows, key) for key in ("own_mb", "disk_mb")}
    return lines + [
        f"{key} grew by {grown[key]:.1f} in the last third"
        for key, most in (("own_mb", OWN_MB), ("disk_mb", DISK_MB))
        if grown[key] > most
    ]


def _grown(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    """By how much a straight line through the last third of the samples rises over it."""
    last = rows[-max(2, len(rows) // 3) :]
    batches = [float(row["batch"]) for row in last]
    slope, _ = statistics.linear_regression(batches, [float(row[key]) for row in last])
    return slope * (batches[-1] - batches[0])


def figures(rows: list[dict[str, Any]], promises: bool) -> dict[str, Any]:
    """First and last of what must stay flat. The first is taken once all has been loaded once."""
    first, last = rows[min(len(rows) - 1, max(1, len(rows) // 10))], rows[-1]

    def pair(key: str) -> list[float]:
        return [first[key], last[key]]

    return {
        "soak_rss_mb_first_last": pair("daemon_rss_mb"),
        "soak_sqlite_mb_first_last": pair("sqlite_mb"),
        "soak_own_mb_first_last": pair("own_mb"),
        "soak_server_rss_mb_first_last": pair("server_rss_mb"),
        "soak_fds_first_last": pair("daemon_fds"),
        "soak_server_fds_first_last": pair("server_fds"),
        "soak_ledger_mb": last["ledger_mb"],
        "soak_disk_mb_first_last": pair("disk_mb"),
        "soak_tick_ms_p50_first_last": pair("tick_ms_p50"),
        "soak_tick_ms_p99_first_last": pair("tick_ms_p99"),
        "soak_tick_ms_max": last["tick_ms_max"],
        "soak_standstill_ms_max": last["standstill_ms_max"],
        "soak_standstill_cpu_ms_max": last["standstill_cpu_ms_max"],
        "soak_tick_cpu_ms_p50_first_last": pair("tick_cpu_ms_p50"),
        "soak_tick_cpu_ms_p99_first_last": pair("tick_cpu_ms_p99"),
        "promises_held": promises,
    }


def main() -> None:
    """A run of another length, its figures on the screen only."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=100)
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(json.dumps(run(chosen.batches, None), indent=1))


if __name__ == "__main__":
    main()
