"""What each revision still knew of each batch, and how reasoning and locality went beside it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

from daemon.ledger.ledger import Ledger
from policies.gate.records import Rate
from policies.records import PlanState, Record

REVISIONS: Final = 30
BATCHES: Final = 40
TRENDS: Final = ("reasoning", "locality")
_SERVED: Final = frozenset({PlanState.LIVE.value, PlanState.ROLLED_BACK.value})

Shares = Mapping[str, tuple[int, int]]


class RetentionRow(Record):
    """One batch: the share of its asked facts that each revision answered right; None where it
    was not asked any. `asked` counts these questions."""

    batch: str
    name: str
    shares: tuple[float | None, ...]
    asked: tuple[int, ...]


class Trend(Record):
    """A suite over the revisions; no point where a verdict has none."""

    suite: str
    role: str
    points: tuple[tuple[int, Rate], ...]


class RetentionView(Record):
    """`/api/retention`: the latest revisions, the batches that their gates asked, and trends."""

    revisions: tuple[int, ...]
    rows: tuple[RetentionRow, ...]
    trends: tuple[Trend, ...]


def retention_view(
    ledger: Ledger, remembered: MutableMapping[tuple[Any, ...], Any]
) -> RetentionView:
    """The latest revisions; `remembered` keeps what was counted of a verdict, which never
    changes."""
    numbers: list[int] = []
    used: set[tuple[Any, ...]] = set()
    counted: list[Shares] = []
    trends: defaultdict[tuple[str, str], list[tuple[int, Rate]]] = defaultdict(list)
    latest = ledger.listings.verdicts(REVISIONS)
    made = ledger.listings.revisions_of([plan for plan, *_ in latest])
    for plan, state, served, verdict in latest:
        number = made.get(plan)
        if number is None or served is None or state not in _SERVED:
            continue
        numbers.append(number)
        used.add(("retention", plan, served))
        counted.append(_shares(ledger, plan, served, remembered))
        for suite in verdict["suites"]:
            if suite["role"] in TRENDS and suite.get("candidate"):
                point = number, Rate.model_validate(suite["candidate"])
                trends[suite["role"], suite["suite"]].append(point)
    for key in [key for key in remembered if key[0] == "retention" and key not in used]:
        remembered.pop(key, None)
    return RetentionView(
        revisions=tuple(numbers),
        rows=_rows(ledger, counted),
        trends=tuple(
            Trend(suite=suite, role=role, points=tuple(points))
            for (role, suite), points in sorted(trends.items(), reverse=True)
        ),
    )


def _rows(ledger: Ledger, counted: list[Shares]) -> tuple[RetentionRow, ...]:
    shown = list(dict.fromkeys(batch for shares in counted for batch in shares))[-BATCHES:]
    names = ledger.batches.names(shown)
    return tuple(
        RetentionRow(
            batch=batch,
            name=names[batch],
            shares=tuple(_share(shares.get(batch)) for shares in counted),
            asked=tuple(shares.get(batch, (0, 0))[1] for shares in counted),
        )
        for batch in shown
    )


def _share(right: tuple[int, int] | None) -> float | None:
    return None if right is None else right[0] / right[1]


def _shares(
    ledger: Ledger, plan: int, served: str, remembered: MutableMapping[tuple[Any, ...], Any]
) -> Shares:
    """By batch: how many questions about its facts the candidate answered right, of how many."""
    key = ("retention", plan, served)
    if key not in remembered:
        card = ledger.listings.scorecard(plan, served) or {"suites": ()}
        right: dict[str, bool] = {
            result["id"]: bool(result["correct"])
            for suite in card["suites"]
            if suite["role"] in ("facts", "retention")
            for result in suite["results"]
        }
        of = ledger.batches.of_facts(sorted({item.rpartition("#")[0] or item for item in right}))
        counts: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        for item, correct in right.items():
            batch = of.get(item.rpartition("#")[0] or item)
            if batch is not None:
                counts[batch][0] += correct
                counts[batch][1] += 1
        remembered[key] = {batch: (r, n) for batch, (r, n) in counts.items()}
    found: Shares = remembered[key]
    return found
