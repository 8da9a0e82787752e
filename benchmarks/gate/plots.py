"""The gate's figures, drawn from results/gate.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

COLOURS = {0.01: "#4477aa", 0.02: "#cc6677", 0.03: "#228833"}
Json = dict[str, Any]


def draw_all(result: Json, folder: Path) -> None:
    """Every figure into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    calibration(result, folder / "gate-calibration.png")
    items(result, folder / "gate-items.png")
    leak(result, folder / "gate-leak.png")
    presets(result, folder / "gate-presets.png")


def calibration(result: Json, path: Path) -> None:
    """Both errors against the discordant share, with three Monte-Carlo standard errors."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharex=True, layout="constrained")
    for axis, key, bound, title in (
        (axes[0], "false_accept", result["alpha"], "Passed although worse by the margin"),
        (axes[1], "false_reject", 1 - result["power"], "Failed although nothing was lost"),
    ):
        for margin, colour in COLOURS.items():
            drop = margin if key == "false_accept" else 0
            cells = [c for c in result["cells"] if c["margin"] == margin and c["drop"] == drop]
            errors = [3 * (c[key] * (1 - c[key]) / c["runs"]) ** 0.5 for c in cells]
            axis.errorbar(
                [100 * c["discordance"] for c in cells],
                [100 * c[key] for c in cells],
                [100 * e for e in errors],
                marker="o",
                color=colour,
                label=f"margin {100 * margin:.0f} pp",
                capsize=3,
            )
        axis.axhline(100 * bound, color="black", linestyle="--", label="bound")
        axis.set(title=title, xlabel="discordant items, %", ylabel="gates, %", ylim=(0, 7))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    _save(figure, path)


def items(result: Json, path: Path) -> None:
    """Mean items over the fixed-size test's against the true drop."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True, layout="constrained")
    for axis, margin in zip(axes, COLOURS, strict=True):
        for discordance in sorted({c["discordance"] for c in result["cells"]}):
            cells = [
                c
                for c in result["cells"]
                if c["margin"] == margin and c["discordance"] == discordance
            ]
            axis.plot(
                [100 * c["drop"] for c in cells],
                [100 * c["items_ratio"] for c in cells],
                marker="o",
                label=f"{100 * discordance:.0f} % discordant",
            )
        axis.axhline(75, color="black", linestyle="--", linewidth=1)
        axis.axvline(100 * margin, color="grey", linestyle=":", linewidth=1)
        axis.set(title=f"margin {100 * margin:.0f} pp", xlabel="true drop, pp")
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="mean items, % of the fixed size", ylim=(0, None))
    axes[0].legend(fontsize=8)
    _save(figure, path)


def leak(result: Json, path: Path) -> None:
    """The loss that forty batches add up to under each gate."""
    peers = result["peers"]
    figure, axis = plt.subplots(figsize=(7.5, 4), layout="constrained")
    for name, losses in peers["accumulated_loss"].items():
        ours = name.startswith("palorad")
        axis.plot(
            range(len(losses) + 1),
            [0, *(100 * loss for loss in losses)],
            label=name,
            linewidth=2.5 if ours else 1.3,
            linestyle="-" if "frozen" in name else "--",
        )
    axis.set(
        xlabel=f"batches, each costing {100 * peers['loss_per_batch']:.1f} pp if it goes live",
        ylabel="reasoning lost against the base, pp",
        title="What each gate lets leak away",
    )
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    _save(figure, path)


def presets(result: Json, path: Path) -> None:
    """The chance to pass against the true drop on reasoning."""
    figure, axis = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    for name, preset in result["presets"].items():
        curve = preset["curve"]
        axis.plot(
            [100 * c["drop"] for c in curve],
            [100 * c["passed"] for c in curve],
            marker="o",
            label=f"{name}: margin {100 * preset['reasoning_margin']:.0f}",
        )
    axis.set(xlabel="true drop on reasoning, pp", ylabel="passed, %", ylim=(0, 102))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
