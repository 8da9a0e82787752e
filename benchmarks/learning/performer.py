"""Performs runs that are missing from a results file, one or several at a time."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from benchmarks.learning import figures
from benchmarks.learning.bases import BASES, RUNS
from benchmarks.learning.harness import Bench, perform
from benchmarks.learning.rows import add, finished
from benchmarks.learning.runs import LearningRun


class Performer:
    """A pool of processes, each with what its runs have in common; rows are added as they come."""

    def __init__(self, results: Path, jobs: int, threads: int) -> None:
        self._results = results
        self._bench = Bench(RUNS)
        self._pool = ProcessPoolExecutor(
            jobs, mp_context=get_context("spawn"), initializer=_begin, initargs=(threads,)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def perform(self, runs: Iterable[LearningRun]) -> None:
        """Perform all runs whose rows are missing or of a base that was pretrained again since;
        returns when the last has ended."""
        done = {(key, row["base_hash"]) for key, row in finished(self._results).items()}
        missing: dict[Future[dict[str, Any]], LearningRun] = {}
        for run in {run.key: run for run in runs}.values():
            if (run.key, BASES[run.base].sha256) in done:
                self._bench.settle(run, BASES[run.base])
            else:
                missing[self._pool.submit(_one, run)] = run
        for future in as_completed(missing):
            row, run = future.result(), missing[future]
            add(self._results, row)
            self._bench.settle(run, BASES[run.base])
            _say(row)


class _Process:
    """What the runs of one process share."""

    bench: Bench
    folder: tempfile.TemporaryDirectory[str]


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    _Process.folder = tempfile.TemporaryDirectory(prefix="palorad-learning-")
    _Process.bench = Bench(Path(_Process.folder.name), RUNS)


def _one(run: LearningRun) -> dict[str, Any]:
    return perform(run, BASES[run.base].knowing(run.examples), _Process.bench)


def _say(row: dict[str, Any]) -> None:
    found = figures.figures([row])
    shown = {k: found[k][0] for k in ("accuracy", "reasoning_vs_base", "locality")}
    sys.stdout.write(
        f"{row['base']} {row['protocol']} {row['method']} seed {row['seed']} ({row['purpose']}, "
        f"rate {row['rate']}): {shown} in {row['seconds']:.0f} s\n"
    )
    sys.stdout.flush()
