"""Pictures of every base: what each method learnt against what it kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from benchmarks.learning.figures import GOALS
from benchmarks.learning.methods import METHODS


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Accuracy against reasoning and against locality, a column for each base and protocol.

    Where some have several methods that learn, those alone.
    """
    every = [(b, p, m) for b, protocols in results.items() for p, m in protocols.items()]
    panels = [one for one in every if sum(map(_learns, one[2].values())) > 1] or every
    figure, axes = _panels(len(panels))
    for column, (base, protocol, methods) in enumerate(panels):
        for axis, (key, _) in zip(axes[:, column], SHOWN, strict=True):
            axis.set(title=f"{base}, {protocol}")
            for name, one in methods.items():
                if _learns(one):
                    (x, *across), (y, *up) = one["accuracy"], one[key]
                    wide, high = [[x - across[0]], [across[1] - x]], [[y - up[0]], [up[1] - y]]
                    axis.errorbar(x, y, xerr=wide, yerr=high, lw=0.5, label=name, **_style(name))
    _save(figure, axes, path)


def draw_sweeps(found: Mapping[str, Any], path: Path) -> None:
    """One injection at rising rates: a line for each method through what each rate reached."""
    figure, axes = _panels(len(found))
    for column, (base, methods) in enumerate(found.items()):
        for axis, (key, _) in zip(axes[:, column], SHOWN, strict=True):
            axis.set(title=f"{base}, one injection by learning rate")
            for name, points in methods.items():
                x, y = [one["accuracy"] for one in points], [one[key] for one in points]
                axis.plot(x, y, lw=0.8, label=name, **_style(name))
    _save(figure, axes, path)


SHOWN: Final = (("reasoning_vs_base", "reasoning relative to base"), ("locality", "locality"))
ACROSS: Final = 4


def _panels(count: int) -> tuple[Figure, np.ndarray]:
    """Axes (2, `count`), drawn at most `ACROSS` beside each other."""
    across, down = min(count, ACROSS), -(-count // ACROSS)
    figure, drawn = plt.subplots(
        2 * down, across, figsize=(5 * across, 7 * down), layout="constrained", squeeze=False
    )
    axes = np.concatenate([drawn[2 * n : 2 * n + 2] for n in range(down)], axis=1)
    for unused in axes[:, count:].flat:
        unused.remove()
    axes = axes[:, :count]
    for (key, label), line in zip(SHOWN, axes, strict=True):
        for axis in line:
            axis.axhline(GOALS[key], color="black", ls=":", lw=0.8)
            axis.set(xlabel="accuracy", ylabel=label)
            axis.grid(alpha=0.3)
    return figure, axes


def _style(name: str) -> dict[str, Any]:
    """The same colour and marker for a method wherever it is drawn; hollow with few traces."""
    place = max(
        n for n, known in enumerate(METHODS) if name == known or name.startswith(f"{known}, ")
    )
    hollow = {} if name in METHODS else {"mfc": "none"}
    return {"color": f"C{place % 10}", "marker": "os^Dv*PX<>"[place // 10], "ms": 5, **hollow}


def _save(figure: Figure, axes: np.ndarray, path: Path) -> None:
    named: dict[str, Artist] = {}
    for axis in axes.flat:
        handles, labels = axis.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=ACROSS)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _learns(figures: Mapping[str, Any]) -> bool:
    return bool(figures["norm"])
