"""From rows to `edits.json`: figures by base, set, protocol and method, with intervals."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from benchmarks.learning.figures import ratio, share

Row = Mapping[str, Any]
BY_BATCH: Final = ("efficacy", "efficacy_stopped", "generalization", "generalization_in_context")
OVER_ALL: Final = ("locality_near", "locality_far", "unchanged")
DEFAULT: Final = "palorad"
# Rates are swept on this seed alone; no figure is of it.
SELECTION: Final = 0


def finished(path: Path) -> dict[str, Row]:
    """The rows by key; a line that a crash has torn does not count."""
    found = {}
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found[row["key"]] = row
    return found


def summary(rows: Iterable[Row]) -> dict[str, Any]:
    """`edits.json`: what the last measured batch of each stream shows."""
    grouped: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        if row["seed"] != SELECTION:
            place = (row["base"], row["dataset"], row["protocol"], row["method"])
            grouped.setdefault(place, []).append(row)
    results: dict[str, Any] = {}
    for (base, dataset, protocol, method), same in sorted(grouped.items()):
        of_set = results.setdefault(base, {}).setdefault(dataset, {})
        of_set.setdefault(protocol, {})[method] = figures(same)
    return {"default_method": DEFAULT, "results": results}


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Each [value, low, high]; intervals of 95 % over seeds and, within a seed, items."""
    last = [row["batches"][-1] for row in rows]
    base = [{"reasoning": row["base_reasoning"]} for row in rows]
    return {
        **{key: share([one[key] for one in last]) for key in BY_BATCH},
        "retention_batch_1": share([one["generalization"][:1] for one in last]),
        **{key: share([[one[key]] for one in last]) for key in OVER_ALL},
        "reasoning_vs_base": ratio(last, base, "reasoning"),
        "general_kl": _spread([one["general_kl"] for one in last]),
        "style_length_ratio": _spread([one["length"][0] / one["length"][1] for one in last]),
        "seconds": _spread([one["seconds"] for one in last]),
        "seeds": sorted(row["seed"] for row in rows),
        "machines": sorted({row["machine"] for row in rows}),
    }


def rates(rows: Iterable[Row]) -> dict[tuple[str, str, str], float]:
    """By base, set and method the rate that did best on one batch of the selection seed: the mean
    of what was learnt and of what was kept, in paraphrases, far facts and reasoning."""
    best: dict[tuple[str, str, str], tuple[float, float]] = {}
    for row in rows:
        if row["seed"] == SELECTION and row["protocol"] == "one" and row["rate"] is not None:
            found = figures([row])
            kept = fmean((found["locality_far"][0], min(1.0, found["reasoning_vs_base"][0])))
            score = fmean((found["generalization"][0], kept))
            place = (row["base"], row["dataset"], row["method"])
            best[place] = max(best.get(place, (-1.0, 0.0)), (score, row["rate"]))
    return {place: rate for place, (_, rate) in best.items()}


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean, the least and the most."""
    return round(fmean(values), 4), round(min(values), 4), round(max(values), 4)
