"""From rows of results to figures with intervals, tables and the plot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

DRAWS: Final = 2000
Row = Mapping[str, Any]
Figure = tuple[float, float, float]


def summary(rows: Iterable[Row], default: str) -> dict[str, Any]:
    """`learning.json`: figures by base, protocol and method, from the report seeds alone."""
    grouped: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row["purpose"] == "report":
            few = f", {row['examples']} examples" if row["examples"] else ""
            name = (row["base"], row["protocol"], row["method"] + few)
            grouped.setdefault(name, []).append(row)
    results: dict[str, Any] = {}
    for (base, protocol, method), same in sorted(grouped.items()):
        results.setdefault(base, {}).setdefault(protocol, {})[method] = figures(same)
    for protocols in results.values():
        for methods in protocols.values():
            for name, one in methods.items():
                one["dominated_by"] = dominating(name, methods)
    return {"default_method": default, "results": results}


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """What the last measured batch of runs with several seeds shows, each [value, low, high].

    Intervals of 95 % come from drawing seeds and, within a seed, items with replacement.
    """
    last = [row["batches"][-1] for row in rows]
    told_far = all("locality_far" in one for one in last)
    base = [row["reference"] for row in rows]
    expert = [row["expert"] for row in rows]
    return {
        "reasoning_vs_reference": _ratio(last, base, "reasoning"),
        "reasoning_vs_expert": _ratio(last, expert, "reasoning"),
        "locality": _share([[one["locality"]] for one in last]),
        **({"locality_far": _share([[one["locality_far"]] for one in last])} if told_far else {}),
        "recall_all": _share([one["recall"] for one in last]),
        "recall_batch1": _share([one["recall"][:1] for one in last]),
        "recall_far": _share([one["recall_far"] for one in last]),
        "norm": round(float(np.mean([one["norm"] for one in last])), 3),
        "leak": max(one["leak"] for one in last),
        "seconds_per_batch": round(float(np.mean([one["train_seconds"] for one in last])), 1),
        "rate": sorted({row["rate"] for row in rows}, key=str),
        "says": rows[0]["says"],
        "machines": sorted({row["machine"] for row in rows}),
        "seeds": sorted(row["seed"] for row in rows),
    }


def dominating(name: str, methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Methods that recall more, keep more reasoning and more known facts, none of them by less."""
    keys = ("recall_all", "reasoning_vs_reference", "locality")
    mine = [methods[name][key][0] for key in keys]
    found = []
    for other, theirs in methods.items():
        values = [theirs[key][0] for key in keys]
        if all(a >= b for a, b in zip(values, mine, strict=True)) and values != mine:
            found.append(other)
    return found


def table(results: Mapping[str, Any]) -> str:
    """Markdown, one table for each base and protocol."""
    parts = []
    for base, protocols in results.items():
        for protocol, methods in protocols.items():
            parts.append(f"**{base}, {protocol}** ({_machines(methods)})\n")
            parts.append(
                "| method | rate | recall | first batch | far wordings "
                "| reasoning of the reference's | known facts | ‖ΔW‖ | seeds |\n"
                "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
            )
            parts += [
                f"| {name}: {one['says']} | {_rates(one['rate'])} | {_per_cent(one['recall_all'])} "
                f"| {_per_cent(one['recall_batch1'])} | {_per_cent(one['recall_far'])} "
                f"| {_per_cent(one['reasoning_vs_reference'])} | {_per_cent(one['locality'])} "
                f"| {one['norm']:.1f} | {len(one['seeds'])} |"
                for name, one in methods.items()
            ]
            parts.append("")
    return "\n".join(parts)


def _rates(rates: Sequence[float | None]) -> str:
    return ", ".join("its own" if rate is None else f"{rate:g}" for rate in rates)


def _machines(methods: Mapping[str, Any]) -> str:
    """What it was measured on, with the methods where not all were measured on the same."""
    found: dict[str, list[str]] = {}
    for name, one in methods.items():
        for machine in one["machines"]:
            found.setdefault(machine, []).append(name)
    if len(found) == 1:
        return next(iter(found))
    most = max(found, key=lambda machine: len(found[machine]))
    others = [f"{', '.join(n)}: {machine}" for machine, n in found.items() if machine != most]
    return "; ".join([most, *others])


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Recall against reasoning and against known facts, a column for each base and protocol.

    Where some have several methods that learn, those alone.
    """
    every = [(b, p, m) for b, protocols in results.items() for p, m in protocols.items()]
    panels = [one for one in every if sum(map(_learns, one[2].values())) > 1] or every
    figure, axes = plt.subplots(
        2, len(panels), figsize=(6 * len(panels), 9), layout="constrained", squeeze=False
    )
    shown = (("reasoning_vs_reference", "reasoning / reference"), ("locality", "known facts"))
    for column, (base, protocol, methods) in enumerate(panels):
        for axis, (key, label) in zip(axes[:, column], shown, strict=True):
            for name, one in methods.items():
                if _learns(one):
                    _point(axis, name, one["recall_all"], one[key])
            axis.axhline(0.99 if key != "locality" else 0.95, color="black", ls=":", lw=0.8)
            axis.set(title=f"{base}, {protocol}", xlabel="recall", ylabel=label)
            axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _learns(figures: Mapping[str, Any]) -> bool:
    return bool(figures["norm"])


def _point(axis: Axes, name: str, x: Figure, y: Figure) -> None:
    wide, high = ([[value - low], [up - value]] for value, low, up in (x, y))
    axis.errorbar(x[0], y[0], xerr=wide, yerr=high, marker="o", lw=0.7)
    axis.annotate(name, (x[0], y[0]), fontsize=7, xytext=(4, 4), textcoords="offset points")


# --- figures with intervals -----------------------------------------------------------------------


def _share(seeds: Sequence[Sequence[str]]) -> Figure:
    """The share of ones over all items of all seeds' rows."""
    items = [_bits("".join(rows)) for rows in seeds]
    value = float(np.mean([one.mean() for one in items]))
    drawn = [float(np.mean([one.mean() for one in sample])) for sample in _samples(items)]
    return _interval(value, drawn)


def _ratio(last: Sequence[Row], base: Sequence[Row], key: str) -> Figure:
    """Right answers of the candidate over those of the reference, paired by item."""
    pairs = [
        np.stack([_bits(one[key]), _bits(two[key])], axis=1)
        for one, two in zip(last, base, strict=True)
    ]
    drawn = [_over(sample) for sample in _samples(pairs)]
    return _interval(_over(pairs), drawn)


def _over(pairs: Sequence[np.ndarray]) -> float:
    sums = np.sum([one.mean(axis=0) for one in pairs], axis=0)
    return float(sums[0] / sums[1]) if sums[1] else math.nan


def _samples(seeds: Sequence[np.ndarray]) -> Iterable[list[np.ndarray]]:
    rng = np.random.default_rng(0)
    for _ in range(DRAWS):
        chosen = rng.integers(len(seeds), size=len(seeds))
        yield [seeds[n][rng.integers(len(seeds[n]), size=len(seeds[n]))] for n in chosen]


def _interval(value: float, drawn: Sequence[float]) -> Figure:
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return round(value, 4), round(float(low), 4), round(float(high), 4)


def _bits(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8) - ord("0")


def _per_cent(figure: Sequence[float]) -> str:
    return f"{100 * figure[0]:.1f} [{100 * figure[1]:.1f}, {100 * figure[2]:.1f}]"
