"""The demonstration's picture: accuracy and reasoning over the revisions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from demo.report import DemoReport


def draw(report: DemoReport, path: Path) -> None:
    """Write a PNG with accuracy by file on the left and reasoning and locality on the right."""
    figure = Figure(figsize=(10, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _accuracy(left, report)
    _reasoning(right, report)
    for axes in (left, right):
        axes.set_xticks([r.number for r in report.revisions])
        axes.set_xlabel("revision (0 is the base)")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="best")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _accuracy(axes: Axes, report: DemoReport) -> None:
    numbers = [r.number for r in report.revisions]
    for stem in report.revisions[0].accuracy:
        axes.plot(numbers, [r.accuracy[stem] for r in report.revisions], "o--", lw=1, label=stem)
    axes.plot(
        numbers,
        [r.accuracy_all for r in report.revisions],
        "k-",
        lw=2.5,
        label="all files",
        zorder=0,
    )
    axes.set_ylim(-0.03, 1.03)
    axes.set_title("Accuracy on held-out paraphrases")


def _reasoning(axes: Axes, report: DemoReport) -> None:
    numbers = [r.number for r in report.revisions]
    base = report.base.base_reasoning
    kept = [r.reasoning_vs_base for r in report.revisions]
    axes.errorbar(
        numbers,
        [r.reasoning for r in report.revisions],
        yerr=[
            [base * max(0.0, k.value - k.low) for k in kept],
            [base * max(0.0, k.high - k.value) for k in kept],
        ],
        fmt="o-",
        color="tab:blue",
        capsize=4,
        label="reasoning, live (95 % paired interval)",
    )
    axes.axhline(base, color="tab:blue", ls=":", label="reasoning, base")
    if report.base.expert_reasoning is not None:
        axes.axhline(
            report.base.expert_reasoning, color="tab:orange", ls=":", label="reasoning, SVF expert"
        )
    axes.plot(
        numbers,
        [r.locality for r in report.revisions],
        "s-",
        color="tab:green",
        label="locality: known facts, never replayed",
    )
    shown = [
        base,
        *(r.locality for r in report.revisions),
        *(r.reasoning for r in report.revisions),
    ]
    axes.set_ylim(min(0.8, min(shown) - 0.05), 1.01)
    axes.set_title("Reasoning and locality")
