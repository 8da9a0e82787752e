"""What docs/results.md shows first: eight methods on one stream, and which differ from palorad."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from benchmarks.learning import figures, labels, tables
from benchmarks.learning.bases import BASES

BASE: Final = "mini"
PROTOCOL: Final = "ten"
OURS: Final = "palorad"
# What is shown, and under which label.
LABELS: Final = {
    OURS: "palorad (large preset)",
    "palorad, small batch": "palorad (small preset)",
    "stack": "palorad (stacked adapters)",
    "replay, warm start": "replay by label",
    "null space": "null space",
    "O-LoRA": "O-LoRA",
    "palora": "PALoRA",
    "plain LoRA": "plain LoRA",
}
COLUMNS: Final = {
    "accuracy": "accuracy",
    "accuracy_ood": "OOD accuracy",
    "reasoning_vs_base": "reasoning relative to base",
    "locality": "locality",
}
KEPT: Final = {
    "reasoning_vs_base": "reasoning kept (% of the base's)",
    "locality": "known facts kept (locality, %)",
}
WORDS: Final = {
    "accuracy": "New facts (accuracy)",
    "accuracy_ood": "OOD paraphrases",
    "reasoning_vs_base": "Reasoning",
    "locality": "Known facts (locality)",
}
# The product on every model and stream: the row's name, the model's, what was learnt.
MODELS: Final = (
    ("mini", "ten", "mini, 3.4 M", "10 × 36 facts"),
    ("headroom", "ten", "headroom, 3.4 M", "10 × 36 facts"),
    ("wide", "ten", "wide, 7.9 M", "10 × 36 facts"),
    ("large", "one", "large, 107 M", "48 facts at once"),
    ("mini", "forty", "mini, 3.4 M", "40 × 12 facts"),
    ("headroom", "forty", "headroom, 3.4 M", "40 × 12 facts"),
    ("wide", "forty", "wide, 7.9 M", "40 × 12 facts"),
)
# Forty batches end where palorad retrains from scratch: the same run, with more seeds.
LAST_OF_FORTY: Final = "retrained from scratch"

Pixel = tuple[float, float]


def differences(rows: Iterable[figures.Row]) -> dict[str, dict[str, figures.Figure]]:
    """palorad minus each other method of the headline: figures by method and column.

    Paired by seed and item, over the seeds that both were measured with; intervals of 95 % as in
    `figures.figures`.
    """
    by_method: dict[str, dict[int, figures.Row]] = {}
    for row in rows:
        told = (row["purpose"], row["base"], row["protocol"], row["examples"])
        if told == ("report", BASE, PROTOCOL, None) and row["method"] in LABELS:
            by_method.setdefault(row["method"], {})[row["seed"]] = row
    mine = by_method.pop(OURS, {})
    found = {}
    for method in [name for name in LABELS if name in by_method]:
        theirs = by_method[method]
        pairs = [(mine[seed], theirs[seed]) for seed in sorted(mine.keys() & theirs.keys())]
        if pairs:
            found[method] = {key: figures.difference(pairs, key) for key in COLUMNS}
    return found


def table(results: Mapping[str, Any]) -> str:
    """Markdown: the eight methods, in percent with intervals."""
    methods = results[BASE][PROTOCOL]
    lines = [
        f"| method | {' | '.join(f'{head} (%)' for head in COLUMNS.values())} | seeds |",
        "| --- " * (len(COLUMNS) + 2) + "|",
    ]
    for name, label in LABELS.items():
        if name in methods:
            cells = [tables.percent(methods[name][key]) for key in COLUMNS]
            lines.append(f"| {label} | {' | '.join(cells)} | {len(methods[name]['seeds'])} |")
    return "\n".join(lines)


def models(results: Mapping[str, Any]) -> str:
    """Markdown: palorad with the large preset on every model; in bold what misses its goal."""
    heads = [f"{head} (goal {100 * figures.GOALS[key]:.0f} %)" for key, head in COLUMNS.items()]
    lines = [
        f"| model | learnt | {' | '.join(heads)} | seeds |",
        "| --- " * (len(COLUMNS) + 3) + "|",
    ]
    for base, protocol, model, learnt in MODELS:
        measured = results.get(base, {}).get(protocol, {})
        one = measured.get(LAST_OF_FORTY) if protocol == "forty" else measured.get(OURS)
        if one:
            served = {"reasoning_vs_base": "reasoning_vs_expert"} if BASES[base].expert else {}
            keys = [served.get(key, key) for key in COLUMNS]
            cells = [tables.against(one[key], figures.GOALS[key]) for key in keys]
            lines.append(f"| {model} | {learnt} | {' | '.join(cells)} | {len(one['seeds'])} |")
    return "\n".join(lines)


def comparison(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Markdown: for each column, which methods palorad is better or worse than."""
    lines = []
    for key, words in WORDS.items():
        better = [LABELS[name] for name, one in found.items() if one[key][1] > 0]
        worse = [LABELS[name] for name, one in found.items() if one[key][2] < 0]
        alike = [LABELS[name] for name in found if LABELS[name] not in (*better, *worse)]
        groups = (("better than", better), ("not told apart from", alike), ("worse than", worse))
        parts = [f"{verdict} {', '.join(names)}" for verdict, names in groups if names]
        lines.append(f"- **{words}**: {'; '.join(parts)}.")
    return "\n".join(lines)


# --- the picture ----------------------------------------------------------------------------------

OWN: Final = "#0a7d55"
OTHER: Final = "#3b5b92"
BEHIND: Final = {"fc": "white", "ec": "none", "alpha": 0.85, "pad": 0.5}
# Of a point with its interval, in pixels.
RADIUS: Final = 17.0


def draw(results: Mapping[str, Any], path: Path) -> None:
    """What was learnt against what was kept, a panel each, every point labelled."""
    methods = {name: results[BASE][PROTOCOL][name] for name in LABELS}
    with mpl.rc_context({"font.size": 11, "figure.facecolor": "white"}):
        figure, axes = plt.subplots(1, 2, figsize=(10, 5), layout="constrained", dpi=160)
        figure.suptitle("Ten batches of 36 new facts into palorad-mini", fontweight="bold")
        for axis, (key, title) in zip(axes, KEPT.items(), strict=True):
            _panel(axis, methods, key, title)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axis, key in zip(axes, KEPT, strict=True):
            _label(axis, _points(axis, methods, key))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        plt.close(figure)


def _panel(axis: Axes, methods: Mapping[str, Any], key: str, title: str) -> None:
    axis.set(xlim=(-5, 108), ylim=(-6, 114), xlabel="new facts learnt (accuracy, %)", title=title)
    axis.set_xticks(range(0, 101, 20))
    axis.set_yticks(range(0, 101, 20))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.axhline(100 * figures.GOALS[key], color="0.55", ls=":", lw=1)
    axis.text(-4, 100 * figures.GOALS[key] + 1, "goal", color="0.45", fontsize=9, va="bottom")
    axis.axvline(100 * figures.GOALS["accuracy"], color="0.55", ls=":", lw=1)
    for name, one in methods.items():
        (x, *across), (y, *up) = one["accuracy"], one[key]
        across_bar = [[100 * (x - across[0])], [100 * (across[1] - x)]]
        up_bar = [[100 * (y - up[0])], [100 * (up[1] - y)]]
        style: dict[str, Any] = {"fmt": "o", "ms": 7, "lw": 1, "color": _colour(name), "mec": "w"}
        axis.errorbar(100 * x, 100 * y, xerr=across_bar, yerr=up_bar, **style)


def _points(axis: Axes, methods: Mapping[str, Any], key: str) -> list[tuple[str, Pixel, str]]:
    """Labels, places in pixels and colours; points that cover each other have one label."""
    found: list[tuple[str, Pixel, str]] = []
    for name, one in sorted(methods.items(), key=lambda item: item[1]["accuracy"][0]):
        x, y = axis.transData.transform((100 * one["accuracy"][0], 100 * one[key][0]))
        label, colour = LABELS[name], _colour(name)
        if found and found[-1][2] == colour and math.dist(found[-1][1], (x, y)) < RADIUS:
            label = f"{found.pop()[0]}, {label}"
        found.append((label, (float(x), float(y)), colour))
    return found


def _colour(name: str) -> str:
    return OWN if name.startswith(OURS) or name == "stack" else OTHER


def _label(axis: Axes, points: Sequence[tuple[str, Pixel, str]]) -> None:
    """Write each label beside its point, with a line to it where another point is nearer."""
    marks = [mark for _, mark, _ in points]
    drawn = [
        axis.text(0, 0, text, transform=None, color=c, va="bottom", bbox=BEHIND)
        for text, _, c in points
    ]
    sizes = [(box.width, box.height) for box in (text.get_window_extent() for text in drawn)]
    boxes = labels.arrange(sizes, marks, RADIUS, axis.bbox.extents)
    for text, box, mark in zip(drawn, boxes, marks, strict=True):
        text.set_position((box[0], box[1]))
        near = labels.nearest(box, mark)
        if math.dist(near, mark) > 1.6 * RADIUS:
            ends = zip(near, mark, strict=True)
            line = Line2D(*ends, transform=None, color=text.get_color(), lw=0.8, zorder=1)
            axis.figure.add_artist(line)
