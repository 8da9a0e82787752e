"""From figures to tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.learning.figures import GOALS

# The product, always retrained from scratch, and never.
OURS: Final = ("palorad", "retrained from scratch", "warm start")
HEADS: Final = {
    "accuracy": "accuracy",
    "retention_batch_1": "retention of batch 1",
    "reasoning_vs_base": "reasoning relative to base",
    "reasoning_vs_expert": "relative to SVF expert",
    "locality": "locality",
    "accuracy_ood": "accuracy on OOD paraphrases",
}
STREAMS: Final = {"ten": "ten batches of 36", "forty": "forty batches of 12"}


def table(methods: Mapping[str, Any]) -> str:
    """Markdown: every method that was measured over the same batches, and on what machine."""
    keys = list(GOALS)
    heads = " | ".join(f"{HEADS[key]} (%)" for key in keys)
    lines = [
        f"Measured on {_machines(methods)}.\n",
        f"| method | rate | {heads} | ‖ΔW‖ | seeds |",
        "| --- " * (len(keys) + 4) + "|",
    ]
    for name, one in methods.items():
        cells = " | ".join(percent(one[key]) for key in keys)
        seeds = len(one["seeds"])
        lines.append(f"| {name} | {_rates(one['rate'])} | {cells} | {one['norm']:.1f} | {seeds} |")
    return "\n".join(lines)


def streams(results: Mapping[str, Any]) -> str:
    """Markdown: the product's variants over each stream, in percent; bold misses its goal."""
    heads = [f"{HEADS[key]} (goal {goal:.0%})".replace("%", " %") for key, goal in GOALS.items()]
    lines = [
        f"| base | facts | method | {' | '.join(heads)} | seeds |",
        "| --- " * (len(heads) + 4) + "|",
    ]
    for protocol, facts in STREAMS.items():
        for base, protocols in results.items():
            for name, one in protocols.get(protocol, {}).items():
                if name.startswith(OURS):
                    cells = [against(one[key], goal) for key, goal in GOALS.items()]
                    seeds = len(one["seeds"])
                    lines.append(f"| {base} | {facts} | {name} | {' | '.join(cells)} | {seeds} |")
    return "\n".join(lines)


def against(figure: Sequence[float], goal: float) -> str:
    """A figure with its interval, in percent; in bold where it misses its goal."""
    value, _, interval = percent(figure).partition(" ")
    return f"{value} {interval}" if figure[0] >= goal else f"**{value}** {interval}"


def _rates(rates: Sequence[float | None]) -> str:
    return ", ".join("default" if rate is None else f"{rate:g}" for rate in rates)


def _machines(methods: Mapping[str, Any]) -> str:
    """What it was measured on, with the methods where not all were measured on the same."""
    found: dict[str, list[str]] = {}
    for name, one in methods.items():
        for machine in one["machines"]:
            found.setdefault(machine, []).append(name)
    if len(found) == 1:
        return next(iter(found))
    most = max(found, key=lambda machine: len(found[machine]))
    parts = [most]
    for machine, names in found.items():
        both = [name for name in names if name in found[most]]
        alone = [name for name in names if name not in both]
        if machine != most:
            parts += [f"{', '.join(alone)}: {machine}"] if alone else []
            parts += [f"{', '.join(both)}: in part {machine}"] if both else []
    return "; ".join(parts)


def percent(figure: Sequence[float]) -> str:
    """A figure with its interval, in percent."""
    return f"{100 * figure[0]:.1f} [{100 * figure[1]:.1f}, {100 * figure[2]:.1f}]"
