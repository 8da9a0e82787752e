"""Which plans stand behind a lineage: what its adapters know, and what they may have seen."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from daemon.ledger.database import Database
from policies.planning import REBUILDS
from policies.records import PlanKind


class _Node(NamedTuple):
    warm: bool
    """Whether its adapter starts from those that it replaces, not from scratch."""
    replaces: tuple[str, ...]
    lineage: tuple[str, ...]
    """The lineage of the revision that it builds on."""


class Ancestry:
    """The graph of plans and adapters.

    An adapter knows what its plan learnt and what the adapters that it replaces know. What a plan
    replays is no row of the ledger: it follows from this graph.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._plans: dict[int, _Node] = {}

    def knows(self, lineage: Iterable[str]) -> tuple[int, ...]:
        """The plans whose facts the adapters of a lineage know, in ascending order."""
        nodes, made_by = self._nodes(), self._made_by()
        found: set[int] = set()
        left = [*_makers(lineage, made_by)]
        while left:
            plan = left.pop()
            if plan not in found and plan in nodes:
                found.add(plan)
                left += _makers(nodes[plan].replaces, made_by)
        return tuple(sorted(found))

    def maker(self, sha256: str) -> int | None:
        """The plan that made an adapter."""
        found = self._db.one("SELECT plan FROM adapters WHERE sha256 = ?", (sha256,))
        return None if found is None else int(found)

    def saw(self, lineage: Iterable[str] = (), plans: Iterable[int] = ()) -> dict[int, int]:
        """The plans whose facts may be in the weights of these adapters, or of what these plans
        train: each with the number of the plan since which a fact must have been lost.

        Through a warm start the weights keep everything (0). A rebuild, or a replay, takes what
        was valid when it was planned: of a fact that was lost before, it has seen nothing.
        Whatever could have been sampled counts.
        """
        nodes, made_by = self._nodes(), self._made_by()
        least: dict[int, int] = {}
        heap = [(0, plan) for plan in (*plans, *_makers(lineage, made_by))]
        heapq.heapify(heap)
        while heap:
            since, plan = heapq.heappop(heap)
            if plan in least or plan not in nodes:
                continue
            least[plan], node = since, nodes[plan]
            if node.warm:
                for earlier in _makers(node.replaces, made_by):
                    heapq.heappush(heap, (since, earlier))
            for earlier in _makers(node.lineage, made_by):
                heapq.heappush(heap, (max(since, plan), earlier))
        return least

    def tainted(self, lost: dict[int, int]) -> frozenset[str]:
        """Adapters that may have seen one of some facts.

        `lost` gives, for each plan that learnt one of them, the number of the newest plan when
        the last of these was lost.
        """
        nodes, made_by = self._nodes(), self._made_by()
        seen = dict(lost)
        before: dict[int, int] = {}
        # More than one pass only where a later plan published the bytes of an earlier one again.
        while seen != before:
            before = dict(seen)
            for plan in sorted(nodes):
                node = nodes[plan]
                sampled = (seen.get(p, -1) for p in _makers(node.lineage, made_by))
                found = [since for since in sampled if since >= plan]
                if node.warm:
                    found += [seen[p] for p in _makers(node.replaces, made_by) if p in seen]
                if found:
                    seen[plan] = max(*found, seen.get(plan, 0))
        return frozenset(sha256 for sha256, plan in made_by.items() if plan in seen)

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

    def _made_by(self) -> dict[str, int]:
        return dict(self._db.rows("SELECT sha256, plan FROM adapters"))


def _makers(lineage: Iterable[str], made_by: Mapping[str, int]) -> Iterator[int]:
    return (made_by[sha256] for sha256 in lineage if sha256 in made_by)


def _node(kind: str, replaces: str, lineage: str | None) -> _Node:
    return _Node(
        warm=PlanKind(kind) not in REBUILDS,
        replaces=_names(replaces),
        lineage=_names(lineage or "[]"),
    )


def _names(text: str) -> tuple[str, ...]:
    found: Sequence[str] = json.loads(text)
    return tuple(found)
