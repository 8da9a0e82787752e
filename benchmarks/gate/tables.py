"""The figures of results/gate.md: every table between its markers, from results/gate.json."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pages
from policies.gate.figures import pp
from policies.gate.limits import PRESETS
from policies.gate.sequential import (
    Design,
    advance,
    fixed_size,
    follow,
    items_to_pass,
    kelly_bet,
    start,
)

Json = dict[str, Any]


def fill(result: Json, page: Path) -> None:
    """Rewrite what stands between `<!-- figures: NAME -->` and `<!-- end -->` in `page`."""
    tables = {
        "calibration": calibration(result["cells"], result),
        "presets": presets(result["presets"]),
        "curves": curves(result["presets"]),
        "constructions": constructions(result["constructions"]),
        "suites": suites(result["suite_sizes"]),
        "instability": instability(result["instability"]),
        "peers": peers(result["peers"]),
        "leak": leak(result["peers"]),
        "draws": draws(result["shared_draws"]),
        "example": example(),
        "measured": measured(result),
        "monotony": monotony(result["monotony"]),
    }
    pages.fill(page, tables)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def calibration(cells: Sequence[Json], result: Json) -> str:
    """Errors and items for every discordance and margin."""
    by = {(c["discordance"], c["margin"], c["drop"]): c for c in cells}
    rows = []
    for (discordance, margin, drop), nothing in by.items():
        if drop == 0:
            worse = by[discordance, margin, margin]
            rows.append(
                (
                    _percent(discordance),
                    _in_pp(margin),
                    _percent(worse["false_accept"], 2),
                    _percent(nothing["false_reject"], 2),
                    _percent(nothing["inconclusive"], 1),
                    nothing["fixed_size"],
                    f"{nothing['items']:.0f} ({_percent(nothing['items_ratio'])})",
                )
            )
    bound = f"at most {_percent(result['alpha'])}"
    return table(
        (
            "discordant",
            "margin, pp",
            f"passed at a drop of the margin ({bound})",
            f"failed at no drop (at most {_percent(1 - result['power'])})",
            "inconclusive at no drop",
            "fixed size",
            "mean items at no drop",
        ),
        rows,
    )


def presets(measured: Json) -> str:
    """Settings and what they amount to at 5 % discordance."""
    rows = []
    for name, got in measured.items():
        limits = PRESETS[name]
        rows.append(
            (
                f"`{name}`",
                " / ".join(
                    _in_pp(m)
                    for m in (
                        limits.reasoning_margin,
                        limits.retention_margin,
                        limits.locality_margin,
                    )
                ),
                f"{_percent(limits.alpha)} / {_percent(limits.beta)}",
                _percent(limits.learnt_share),
                _percent(got["curve"][4]["passed"], 1),
                _percent(got["harmless"]["failed"], 1),
                _percent(got["harmless"]["passed"], 1),
                got["items_at_no_drop"],
                got["suite"],
            )
        )
    return table(
        (
            "preset",
            "margins: reasoning / earlier / known facts, pp",
            "α / β",
            "facts learnt",
            "a drop of the margin gets through",
            "a harmless batch is rejected",
            "a harmless batch passes",
            "mean items on reasoning",
            "of a suite of",
        ),
        rows,
    )


def curves(measured: Json) -> str:
    """The chance to pass by the true drop in margins."""
    shares = [
        round(c["drop"] / measured["balanced"]["reasoning_margin"], 2)
        for c in measured["balanced"]["curve"]
    ]
    rows = [
        (f"`{name}`", *(_percent(c["passed"], 1) for c in got["curve"]))
        for name, got in measured.items()
    ]
    return table(("passed at a drop of", *(f"{share:g} margins" for share in shares)), rows)


def constructions(rows: Sequence[Json]) -> str:
    """Items at no drop and false accepts at the margin of each construction."""
    names = list(dict.fromkeys(row["construction"] for row in rows))
    shares = sorted({row["discordance"] for row in rows})
    by = {(r["construction"], r["discordance"], r["drop"] > 0): r for r in rows}

    def cell(name: str, share: float) -> str:
        nothing, worse = by[name, share, False], by[name, share, True]
        return f"{_percent(nothing['items_ratio'])} ({_percent(worse['passed'], 1)})"

    return table(
        (
            "items of the fixed size at no drop (passed at the margin)",
            *(f"{_percent(share)} discordant" for share in shares),
        ),
        [(name, *(cell(name, share) for share in shares)) for name in names],
    )


def suites(rows: Sequence[Json]) -> str:
    """Chance to pass by the size of the suite."""
    return table(
        (
            "discordant",
            "items in the suite",
            "of the fixed size",
            "passed",
            "failed",
            "inconclusive",
        ),
        [
            (
                _percent(r["discordance"]),
                r["suite"],
                f"{r['of_fixed_size']:g}",
                *(_percent(r[key], 1) for key in ("passed", "failed", "inconclusive")),
            )
            for r in rows
        ],
    )


def instability(rows: Sequence[Json]) -> str:
    """False accepts under one frozen, noisy measurement of the base."""
    return table(
        (
            "answers that change",
            "margin tested, pp",
            "passed at a drop of 2 pp",
            "measurements of the base that let more than 10 % through",
        ),
        [
            (
                _percent(r["flips"], 1),
                f"{100 * r['tested_margin']:.2f}",
                _percent(r["false_accept"], 1),
                _percent(r["unlucky"], 1),
            )
            for r in rows
            if r["corrected"] or r["flips"]
        ],
    )


def peers(got: Json) -> str:
    """Who accepts what."""
    return table(
        ("gate", "items", *(f"drop {pp(drop)}" for drop in got["drops"])),
        [
            (row["gate"], row["items"], *(_percent(share, 1) for share in row["accepted"]))
            for row in got["accepted"]
        ],
    )


def leak(got: Json) -> str:
    """What forty batches add up to."""
    return table(
        ("gate", "reasoning lost after 10, 20, 40 batches, pp"),
        [
            (name, ", ".join(f"{100 * losses[n - 1]:.1f}" for n in (10, 20, 40)))
            for name, losses in got["accumulated_loss"].items()
        ],
    )


def draws(rows: Sequence[Json]) -> str:
    """What revisions that share one draw of the items let through."""
    return table(
        (
            "revisions on one draw",
            "passed of those worse by 2 pp or more",
            "reasoning lost after 10, 20, 40 batches, pp",
        ),
        [
            (
                row["revisions_per_draw"],
                _percent(row["passed_too_much"], 1),
                ", ".join(f"{100 * row['accumulated_loss'][n - 1]:.1f}" for n in (10, 20, 40)),
            )
            for row in rows
        ],
    )


def example() -> str:
    """One candidate that lost nothing, followed by hand."""
    design = Design(0.02, 0.05, 0.05)
    rng = np.random.default_rng(11)
    stream = rng.choice([-1.0, 0.0, 1.0], p=[0.025, 0.95, 0.025], size=1319)
    end = follow(design, stream)
    path, _ = advance(design, start(1), stream[None, :])
    rows = []
    for count in [0, *(n for n in (1, 50, 100, 200, 400, 600, 800) if n < end.items), end.items]:
        seen = stream[:count]
        guess = follow(design, seen).expected_discordance
        rows.append(
            (
                count,
                int((seen < 0).sum()),
                int((seen > 0).sum()),
                _percent(guess, 1),
                f"{float(kelly_bet(guess, design.margin)):.3f}",
                f"{np.exp(path.log_pass[0, count - 1]) if count else 1:.2f}",
                f"{np.exp(path.log_fail[0, count - 1]) if count else 1:.2f}",
            )
        )
    lines = table(
        (
            "items",
            "newly failing",
            "newly passing",
            "discordance expected",
            "next bet",
            "wealth against “2 pp worse”",
            "wealth against “no drop”",
        ),
        rows,
    )
    return (
        f"{lines}\n\nIt **{end.decision}es** after {end.items} items, because "
        f"{np.exp(end.log_pass):.2f} ≥ 1/α = 20. The fixed-size test would have asked "
        f"{fixed_size(design, 0.05)}; expected beforehand were {items_to_pass(design, 0.05)}."
    )


def monotony(got: Json) -> str:
    """What the search for a better answer that makes a decision worse came to."""
    return (
        f"A search over {got['streams']:,} random streams with one or two answers improved, "
        f"{got['cut_at_a_pass']:,} of them cut off at the very item that passed, found "
        f"{got['worse'] or 'no'} decisions that got worse."
    )


def measured(result: Json) -> str:
    """Where the figures come from."""
    runs = result["cells"][0]["runs"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"{runs:,} gates a cell, seed {result['seed']}, {result['seconds']} s on "
        f"{result['machine']}, {versions}, {result['date']}, commit {result['commit'][:8]}."
    )


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _in_pp(share: float) -> str:
    return f"{100 * share:g}"
