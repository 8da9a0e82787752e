"""Which plans stand behind a lineage: what its adapters know, and what they may have seen."""

from __future__ import annotations

import heapq
import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from daemon.ledger.database import Database
from policies.planning import REBUILDS
from policies.records import PlanKind

_NOW: Final = 1 << 62
Makers = Mapping[str, Sequence[int]]


class _Node(NamedTuple):
    warm: bool
    """Whether its adapter starts from those that it replaces, not from scratch."""
    replaces: tuple[str, ...]
    lineage: tuple[str, ...]
    """The lineage of the revision that it builds on."""


class Ancestry:
    """The graph of plans and adapters.

    An adapter knows what its plan learnt and what the adapters that it replaces know. What a plan
    replays is no row of the ledger: it follows from this graph. Plans that published the same
    bytes share an adapter: a plan builds on the newest of them that was made before it.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._plans: dict[int, _Node] = {}

    def knows(self, lineage: Iterable[str]) -> tuple[int, ...]:
        """The plans whose facts the adapters of a lineage know, in ascending order."""
        nodes, makers = self._nodes(), self._makers()
        found: set[int] = set()
        left = [*_behind(lineage, makers, _NOW)]
        while left:
            plan = left.pop()
            if plan not in found and plan in nodes:
                found.add(plan)
                left += _behind(nodes[plan].replaces, makers, plan)
        return tuple(sorted(found))

    def maker(self, sha256: str) -> int | None:
        """The newest plan that published an adapter."""
        return next(_behind((sha256,), self._makers(), _NOW), None)

    def saw(self, lineage: Iterable[str] = (), plans: Iterable[int] = ()) -> dict[int, int]:
        """The plans whose facts may be in the weights of these adapters, or of what these plans
        train: each with the number of the plan since which a fact must have been lost.

        Through a warm start the weights keep everything (0). A rebuild, or a replay, takes what
        was valid when it was planned: of a fact that was lost before, it has seen nothing.
        Whatever could have been sampled counts.
        """
        nodes, makers = self._nodes(), self._makers()
        least: dict[int, int] = {}
        heap = [(0, plan) for plan in (*plans, *_behind(lineage, makers, _NOW))]
        heapq.heapify(heap)
        while heap:
            since, plan = heapq.heappop(heap)
            if plan in least or plan not in nodes:
                continue
            least[plan], node = since, nodes[plan]
            if node.warm:
                for earlier in _behind(node.replaces, makers, plan):
                    heapq.heappush(heap, (since, earlier))
            for earlier in _behind(node.lineage, makers, plan):
                heapq.heappush(heap, (max(since, plan), earlier))
        return least

    def tainted(self, lost: Mapping[int, int]) -> frozenset[str]:
        """Adapters that may have seen one of some facts.

        `lost` gives, for each plan that learnt one of them, the number of the newest plan when
        the last of these was lost.
        """
        nodes, makers = self._nodes(), self._makers()
        seen: dict[int, int] = {}
        for plan in sorted(nodes):
            node = nodes[plan]
            sampled = [seen.get(p, -1) for p in _behind(node.lineage, makers, plan)]
            found = [lost.get(plan, -1), *(since for since in sampled if since >= plan)]
            if node.warm:
                found += [seen.get(p, -1) for p in _behind(node.replaces, makers, plan)]
            if max(found) >= 0:
                seen[plan] = max(found)
        return frozenset(sha256 for sha256, plans in makers.items() if plans[-1] in seen)

    # --- the graph -----------------------------------------------------------------------------

    def _nodes(self) -> dict[int, _Node]:
        newest = max(self._plans, default=0)
        rows = self._db.rows(
            "SELECT p.id, p.kind, p.replaces, r.lineage FROM plans p"
            " LEFT JOIN revisions r ON r.number = p.parent WHERE p.id > ?",
            (newest,),
        )
        fresh = {plan: _node(kind, replaces, lineage) for plan, kind, replaces, lineage in rows}
        if self._db.connection.in_transaction:  # what is not kept yet may still be undone
            return {**self._plans, **fresh}
        self._plans.update(fresh)
        return self._plans

    def _makers(self) -> Makers:
        """The plans that published each adapter, in ascending order."""
        found: defaultdict[str, list[int]] = defaultdict(list)
        for sha256, plan in self._db.rows(
            "SELECT sha256, plan FROM adapters UNION"
            " SELECT adapter, id FROM plans WHERE adapter IS NOT NULL ORDER BY 2"
        ):
            found[sha256].append(plan)
        return found


def _behind(lineage: Iterable[str], makers: Makers, before: int) -> Iterator[int]:
    """For each adapter the newest plan that published it before plan number `before`."""
    for sha256 in lineage:
        plans = makers.get(sha256, ())
        if place := bisect_left(plans, before):
            yield plans[place - 1]


def _node(kind: str, replaces: str, lineage: str | None) -> _Node:
    return _Node(
        warm=PlanKind(kind) not in REBUILDS,
        replaces=tuple(json.loads(replaces)),
        lineage=tuple(json.loads(lineage or "[]")),
    )
