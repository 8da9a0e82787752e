"""What the demonstration measured: records, goals, table."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.table import Table
from rich.text import Text

from policies.gate.figures import limit, percent

BASE_KNOWS_AT_MOST = 0.05
ACCURACY_AT_LEAST = 0.90
REASONING_AT_LEAST = 0.99
LOCALITY_AT_LEAST = 0.90
SHOWN = 48


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="null")


class Interval(_Part):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


class RevisionReport(_Part):
    """One revision as clients saw it under the alias; shares from 0 to 1, times in seconds."""

    number: int
    batch: str | None
    verdict: str | None
    accuracy: dict[str, float]
    accuracy_all: float
    reasoning: float
    reasoning_vs_base: Interval
    locality: float
    seconds: dict[str, float]


class BaseFigures(_Part):
    """What the weights say without adapters."""

    base_reasoning: float
    expert_reasoning: float | None
    locality: float


class Rejected(_Part):
    """A file that the gate refused."""

    file: str
    verdict: str
    reasons: list[str]
    live_unchanged: bool


class DemoExample(_Part):
    """One question before and after, through the endpoint."""

    prompt: str
    expected: str
    before: str
    after: str


class Goal(_Part):
    """One thing that the demonstration has to reach."""

    name: str
    reached: bool
    line: str


class DemoReport(_Part):
    """Everything, as `--report` writes it."""

    model: str = "palorad-mini"
    server: str
    revisions: list[RevisionReport]
    base: BaseFigures
    rejected: list[Rejected]
    rollback_ok: bool
    items: dict[str, int]
    examples: list[DemoExample]
    goals: list[Goal]
    seconds: dict[str, float]
    versions: dict[str, str]
    machine: dict[str, str | int]


def ratio_interval(base: Sequence[bool], candidate: Sequence[bool]) -> Interval:
    """Candidate's rate over that of the base on the same items, paired.

    Percentiles of 20,000 draws of the four kinds of pair from a multinomial distribution (the
    bootstrap over items).
    """
    ref, cand = np.asarray(base, bool), np.asarray(candidate, bool)
    kinds = np.array(
        [(ref & cand).sum(), (ref & ~cand).sum(), (~ref & cand).sum(), (~ref & ~cand).sum()]
    )
    if not ref.size or not ref.sum():
        return Interval(value=float("nan"), low=float("nan"), high=float("nan"))
    draws = np.random.default_rng(0).multinomial(ref.size, kinds / ref.size, size=20_000)
    ratios = (draws[:, 0] + draws[:, 2]) / np.maximum(draws[:, 0] + draws[:, 1], 1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(value=float(cand.sum() / ref.sum()), low=float(low), high=float(high))


def goals(
    revisions: Sequence[RevisionReport], rejected: Sequence[Rejected], rollback_ok: bool
) -> list[Goal]:
    """The demonstration's goals, each with the figure that decides it."""
    first, last = revisions[0], revisions[-1]
    kept = last.reasoning_vs_base
    missed = [r.file for r in rejected if r.verdict != "fail"]
    disturbed = [r.file for r in rejected if not r.live_unchanged]
    unlearnt = [r.batch for r in revisions[1:] if r.verdict != "pass"]
    return [
        Goal(
            name="before",
            reached=first.accuracy_all <= BASE_KNOWS_AT_MOST,
            line=f"base answers {percent(first.accuracy_all)} of the new facts "
            f"(at most {limit(BASE_KNOWS_AT_MOST)})",
        ),
        Goal(
            name="accuracy",
            reached=last.accuracy_all >= ACCURACY_AT_LEAST and not unlearnt,
            line="accuracy on held-out paraphrases over all files at the end "
            f"{percent(last.accuracy_all)} (at least {limit(ACCURACY_AT_LEAST)})"
            + (f"; did not go live: {', '.join(map(str, unlearnt))}" if unlearnt else ""),
        ),
        Goal(
            name="reasoning",
            reached=kept.value >= REASONING_AT_LEAST,
            line=f"reasoning {percent(kept.value)} relative to base "
            f"[{percent(kept.low)}, {percent(kept.high)}] (at least {limit(REASONING_AT_LEAST)})",
        ),
        Goal(
            name="locality",
            reached=last.locality >= LOCALITY_AT_LEAST,
            line=f"locality {percent(last.locality)} on known facts that are never replayed "
            f"(at least {limit(LOCALITY_AT_LEAST)})",
        ),
        Goal(
            name="rejection",
            reached=bool(rejected) and not missed and not disturbed,
            line=_rejection_line(rejected, missed, disturbed),
        ),
        Goal(
            name="rollback",
            reached=rollback_ok,
            line="rollback and forward again "
            + ("served what they should" if rollback_ok else "did not serve what they should"),
        ),
    ]


def _rejection_line(
    rejected: Sequence[Rejected], missed: Sequence[str], disturbed: Sequence[str]
) -> str:
    if missed:
        return f"not rejected: {', '.join(missed)}"
    if disturbed:
        return f"live answers changed while {', '.join(disturbed)} was judged"
    names = ", ".join(r.file for r in rejected)
    return f"{names} rejected, the live answers as before" if names else "nothing to reject"


def results_table(report: DemoReport) -> Table:
    """Revision by revision: accuracy by file, reasoning, locality in percent; seconds."""
    stems = list(report.revisions[0].accuracy)
    table = Table(title="What clients got under the alias, revision by revision")
    table.add_column("", justify="right")
    table.add_column("file")
    table.add_column("verdict")
    for stem in stems:
        table.add_column(f"accuracy, %\n{stem[:12]}", justify="right")
    for name in (
        "accuracy, %\nall",
        "reasoning, %",
        "relative to base, %\n[95 %]",
        "locality, %",
        "seconds",
    ):
        table.add_column(name, justify="right")
    for r in report.revisions:
        kept = r.reasoning_vs_base
        table.add_row(
            str(r.number),
            r.batch or "(base)",
            r.verdict or "",
            *(f"{100 * r.accuracy[stem]:.1f}" for stem in stems),
            f"{100 * r.accuracy_all:.1f}",
            f"{100 * r.reasoning:.1f}",
            f"{100 * kept.value:.1f} [{100 * kept.low:.1f}, {100 * kept.high:.1f}]",
            f"{100 * r.locality:.1f}",
            f"{sum(r.seconds.values()):.0f}" if r.seconds else "",
        )
    return table


def seconds_table(report: DemoReport) -> Table:
    """Where the time of each revision went."""
    stages = list(dict.fromkeys(s for r in report.revisions for s in r.seconds))
    table = Table("revision", *stages, title="Seconds per stage")
    for r in report.revisions[1:]:
        table.add_row(str(r.number), *(f"{r.seconds.get(s, 0.0):.1f}" for s in stages))
    return table


def examples_table(examples: Sequence[DemoExample]) -> Table:
    """Questions in paraphrases that were never trained, asked before and after."""
    table = Table("question", "expected", "before", "after", title="Answers through the endpoint")
    for e in examples:
        table.add_row(*(Text(_short(cell)) for cell in (e.prompt, e.expected, e.before, e.after)))
    return table


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"


def versions_in_use() -> dict[str, str]:
    """Versions of what the figures depend on."""
    names = ("palorad", "torch", "transformers", "peft", "numpy")
    return {"python": platform.python_version(), **{n: version(n) for n in names}}


def machine_in_use() -> dict[str, str | int]:
    """The machine the figures were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = named[0] if named else model
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count() or 1
    return {"cpu": model, "cores": cores, "system": platform.system(), "kind": platform.machine()}
