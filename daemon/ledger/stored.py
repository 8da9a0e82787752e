"""What the ledger says of things on the disk: of those that are asked for, however many were."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Final

from daemon.ledger.batches import Batches
from daemon.ledger.database import Database, SqlRow, chunks, marks, unstamp
from daemon.ledger.records import Served
from policies.records import PlanState
from policies.retention import SHORT, UNDECIDED, KnownBatch, KnownPlan, KnownRevision

_PIECE: Final = 500


class Stored:
    """Plans, revisions and batches as retention knows them, read a piece at a time."""

    def __init__(self, db: Database, batches: Batches) -> None:
        self._db = db
        self._batches = batches

    def plans(
        self, ids: Collection[str], served: Collection[str], adapters: Collection[str]
    ) -> Iterator[KnownPlan]:
        """Plans that are undecided, and those of which something lies on the disk: by their ids,
        by the names of their revisions, or by the first digits of their adapters' hashes."""
        columns = "id, state, parent, adapter, served, moved_at"
        for number, state, parent, adapter, told, moved_at in self._pieces("plans", "id", columns):
            of = None if told is None else Served.model_validate_json(told)
            there = str(number) in ids or (of is not None and of.name in served)
            if there or state in UNDECIDED or (adapter or "")[:SHORT] in adapters:
                yield KnownPlan(
                    id=number,
                    state=PlanState(state),
                    parent=parent,
                    adapter=adapter,
                    served=of.name if of else None,
                    sha256=of.sha256 if of else None,
                    moved_at=unstamp(moved_at),
                )

    def revisions(
        self, numbers: Collection[int], names: Collection[str], adapters: Collection[str]
    ) -> Iterator[KnownRevision]:
        """Revisions of these numbers, and those of which something lies on the disk."""
        columns = "number, parent, served_name, lineage, sha256"
        for number, parent, name, listed, sha256 in self._pieces("revisions", "number", columns):
            lineage = tuple(json.loads(listed))
            there = name in names or any(sha[:SHORT] in adapters for sha in lineage)
            if there or number in numbers:
                yield KnownRevision(
                    number=number, parent=parent, name=name, lineage=lineage, sha256=sha256
                )

    def reachable(self, target: int, most: int) -> frozenset[int]:
        """Numbers among which all revisions within reach are: `most` ancestors of the target, as
        many newest ones, and what was built on the target last."""
        found: set[int] = set()
        number: int | None = target
        while number is not None and len(found) <= most:
            found.add(number)
            number = self._db.one("SELECT parent FROM revisions WHERE number = ?", (number,))
        newest = self._db.rows(
            "SELECT number FROM revisions ORDER BY number DESC LIMIT ?", (most + 1,)
        )
        last = self._db.one("SELECT max(number) FROM revisions WHERE parent = ?", (target,))
        return frozenset({*found, *(row[0] for row in newest)} | ({last} if last else set()))

    def batches(self, ids: Collection[str], names: Collection[str]) -> Iterator[KnownBatch]:
        """Batches of these ids, and all of the files of these names."""
        for column, asked in (("id", ids), ("name", names)):
            for chunk in chunks(sorted(asked)):
                rows = self._db.rows(
                    "SELECT id, name, received_at, quarantined FROM batches"
                    f" WHERE complete AND {column} IN ({marks(chunk)})",
                    chunk,
                )
                for identity, name, received_at, quarantined in rows:
                    yield KnownBatch(
                        id=identity,
                        name=name,
                        received_at=unstamp(received_at),
                        state=self._batches.state(identity),
                        quarantined=quarantined,
                    )

    def _pieces(self, table: str, key: str, columns: str) -> Iterator[SqlRow]:
        last = -1
        while rows := self._db.rows(
            f"SELECT {columns} FROM {table} WHERE {key} > ? ORDER BY {key} LIMIT {_PIECE}", (last,)
        ):
            yield from rows
            last = rows[-1][0]
