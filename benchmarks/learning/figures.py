"""From rows of results to figures with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

DRAWS: Final = 2000
Row = Mapping[str, Any]
Figure = tuple[float, float, float]
GOALS: Final = {
    "accuracy": 0.95,
    "retention_batch_1": 0.95,
    "reasoning_vs_base": 0.99,
    "reasoning_vs_expert": 0.99,
    "locality": 0.95,
    "accuracy_ood": 0.80,
}
# The goals by which the default is chosen.
DECIDING: Final = ("accuracy", "retention_batch_1", "reasoning_vs_base", "locality")
RELATIVE: Final = "reasoning_vs_base"


def summary(rows: Iterable[Row]) -> dict[str, Any]:
    """`learning.json`: figures by base, protocol and method, from the report seeds alone, and
    those of the sweeps from the selection seeds."""
    rows = list(rows)
    grouped: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row["purpose"] == "report":
            grouped.setdefault(place(row), []).append(row)
    results: dict[str, Any] = {}
    for (base, protocol, method), same in sorted(grouped.items()):
        results.setdefault(base, {}).setdefault(protocol, {})[method] = figures(same)
    for protocols in results.values():
        for methods in protocols.values():
            for name, one in methods.items():
                one["dominated_by"] = dominating(name, methods)
    return {"default_method": default(results), "results": results, "sweeps": sweeps(rows)}


def place(row: Row) -> tuple[str, str, str]:
    """Base, protocol and method of a row; few given traces are told with the method."""
    few = f", {row['examples']} traces" if row["examples"] else ""
    return row["base"], row["protocol"], row["method"] + few


def default(results: Mapping[str, Any]) -> str | None:
    """The product's method: the one that misses the goals of a stream by least.

    A method misses by its worst figure: reasoning against 99 %, accuracy, retention of batch 1 and
    locality against 95 %, over every base and stream (`ten`, `forty`) on which others were measured
    too. A method that was measured on fewer of them than another does not count.
    """
    missed: dict[str, list[float]] = {}
    for protocols in results.values():
        for name in ("ten", "forty"):
            methods = protocols.get(name, {})
            if len(methods) > 1:
                for method, one in methods.items():
                    short = max(GOALS[key] - one[key][0] for key in DECIDING)
                    missed.setdefault(method, []).append(short)
    most = max(map(len, missed.values()), default=0)
    counted = {name: max(short) for name, short in missed.items() if len(short) == most}
    return min(counted, key=counted.__getitem__, default=None)


def sweeps(rows: Iterable[Row]) -> dict[str, Any]:
    """One injection on selection seeds: figures by base, method and rate."""
    found: dict[str, Any] = {}
    for row in rows:
        if (row["purpose"], row["protocol"]) == ("selection", "one") and row["rate"] is not None:
            rates = found.setdefault(row["base"], {}).setdefault(row["method"], {})
            rates.setdefault(row["rate"], []).append(row)
    return {
        base: {
            method: [{"rate": rate, **values(rates[rate], -1)} for rate in sorted(rates)]
            for method, rates in methods.items()
        }
        for base, methods in found.items()
    }


def values(rows: Sequence[Row], place: int) -> dict[str, float]:
    """What a measured batch shows, without intervals."""
    measured = [row["batches"][place] for row in rows]
    found = {
        "accuracy": _mean(_items([one["accuracy"] for one in measured])),
        "accuracy_ood": _mean(_items([one["accuracy_ood"] for one in measured])),
        "locality": _mean(_items([[one["locality"]] for one in measured])),
        "retention_batch_1": _mean(_items([one["accuracy"][:1] for one in measured])),
        "reasoning_vs_base": _over(
            _pairs(measured, [row["base_answers"] for row in rows], "reasoning")
        ),
    }
    return {name: round(value, 4) for name, value in found.items()}


def course(rows: Sequence[Row]) -> list[dict[str, float]]:
    """Every measured batch, with its steps and seconds on the machine that most rows are from."""
    machines = [row["machine"] for row in rows]
    usual = max(machines, key=machines.count)
    found = []
    for place, batch in enumerate(rows[0]["batches"]):
        same = [row["batches"][place] for row in rows if row["machine"] == usual]
        found.append(
            {
                "batch": batch["batch"],
                "steps": round(float(np.mean([one["steps"] for one in same])), 1),
                "seconds": round(float(np.mean([one["train_seconds"] for one in same])), 1),
                **values(rows, place),
            }
        )
    return found


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """What the last measured batch of runs with several seeds shows, each [value, low, high].

    Intervals of 95 % come from drawing seeds and, within a seed, items with replacement.
    """
    last = [row["batches"][-1] for row in rows]
    has_ood = all("locality_ood" in one for one in last)
    base = [row["base_answers"] for row in rows]
    expert = [row["expert_answers"] for row in rows]
    return {
        "reasoning_vs_base": ratio(last, base, "reasoning"),
        "reasoning_vs_expert": ratio(last, expert, "reasoning"),
        "locality": share([[one["locality"]] for one in last]),
        "locality_vs_base": ratio(last, base, "locality"),
        **({"locality_ood": share([[one["locality_ood"]] for one in last])} if has_ood else {}),
        "accuracy": share([one["accuracy"] for one in last]),
        "retention_batch_1": share([one["accuracy"][:1] for one in last]),
        "accuracy_ood": share([one["accuracy_ood"] for one in last]),
        "norm": round(float(np.mean([one["norm"] for one in last])), 3),
        "leak": max(one["leak"] for one in last),
        "course": course(rows),
        "rate": sorted({row["rate"] for row in rows}, key=str),
        "description": rows[0]["description"],
        "machines": sorted({row["machine"] for row in rows}),
        "seeds": sorted(row["seed"] for row in rows),
    }


def dominating(name: str, methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Methods that are better in accuracy, reasoning or locality and as good in the others."""
    keys = ("accuracy", "reasoning_vs_base", "locality")
    mine = [methods[name][key][0] for key in keys]
    found = []
    for other, theirs in methods.items():
        values = [theirs[key][0] for key in keys]
        if all(a >= b for a, b in zip(values, mine, strict=True)) and values != mine:
            found.append(other)
    return found


# --- figures with intervals -----------------------------------------------------------------------


def share(seeds: Sequence[Sequence[str]]) -> Figure:
    """The share of ones over all items of all seeds' rows."""
    items = _items(seeds)
    return _interval(_mean(items), [_mean(sample) for sample in _samples(items)])


def _items(seeds: Sequence[Sequence[str]]) -> list[np.ndarray]:
    return [_bits("".join(rows)) for rows in seeds]


def _mean(items: Sequence[np.ndarray]) -> float:
    return float(np.mean([one.mean() for one in items]))


def ratio(last: Sequence[Row], base: Sequence[Row], key: str) -> Figure:
    """Right answers of the candidate over those of the base or expert, paired by item."""
    pairs = _pairs(last, base, key)
    drawn = [_over(sample) for sample in _samples(pairs)]
    return _interval(_over(pairs), drawn)


def _pairs(last: Sequence[Row], base: Sequence[Row], key: str) -> list[np.ndarray]:
    return [
        np.stack([_bits(one[key]), _bits(two[key])], axis=1)
        for one, two in zip(last, base, strict=True)
    ]


def _over(pairs: Sequence[np.ndarray]) -> float:
    sums = np.sum([one.mean(axis=0) for one in pairs], axis=0)
    return float(sums[0] / sums[1]) if sums[1] else math.nan


def difference(pairs: Sequence[tuple[Row, Row]], key: str) -> Figure:
    """The first method's figure minus the second's after the last batch: pairs of one seed each.

    `key` is "accuracy", "accuracy_ood", "locality" or "reasoning_vs_base". Both are asked the same
    items, so items are drawn in pairs.
    """
    triples = []
    for pair in pairs:
        one, two = (_asked(row["batches"][-1], key) for row in pair)
        base = _bits(pair[0]["base_answers"]["reasoning"]) if key == RELATIVE else np.ones_like(one)
        triples.append(np.stack([one, two, base], axis=1))

    def gap(sample: Sequence[np.ndarray]) -> float:
        ours, theirs, whole = np.sum([one.mean(axis=0) for one in sample], axis=0)
        return float((ours - theirs) / whole) if whole else math.nan

    return _interval(gap(triples), [gap(sample) for sample in _samples(triples)])


def _asked(batch: Mapping[str, Any], key: str) -> np.ndarray:
    found = batch["reasoning" if key == RELATIVE else key]
    return _bits(found if isinstance(found, str) else "".join(found))


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
