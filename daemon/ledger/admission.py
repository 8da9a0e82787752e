"""How batches and their facts come into the ledger."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from daemon.ledger.bad_lines import BadLines
from daemon.ledger.batches import Batches
from daemon.ledger.chain import followed
from daemon.ledger.database import Database, SqlRow, chunks, marks
from daemon.ledger.fact_rows import LASTING, fact_row, instant, standing
from daemon.ledger.facts import LOST_NOW, key_of
from daemon.ledger.feeds import FeedCursors
from daemon.ledger.records import Admitted, Arriving
from daemon.ledger.retractions import Retractions
from policies.errors import NotFound
from policies.facts.supersession import (
    FactRelation,
    Ruling,
    StandingFact,
    Validity,
    lost_by,
    stem_of,
    to_come,
)
from policies.records import Batch, Fact, Operation, Quarantined

KEPT: Final = 1000
_REPLACING: Final = frozenset({FactRelation.SUPERSEDES, FactRelation.RETRACTS})
_NOT_STORED: Final = frozenset({FactRelation.KNOWN, FactRelation.CONFLICT})


class Admission:
    """Admits batches, large ones chunk by chunk."""

    def __init__(
        self, db: Database, batches: Batches, feeds: FeedCursors, retractions: Retractions
    ) -> None:
        self._db = db
        self._batches = batches
        self._feeds = feeds
        self._retractions = retractions
        self.bad_lines = BadLines(db)

    def begin_batch(
        self,
        batch: Batch,
        *,
        signature: str = "",
        cursor: str = "",
        instead: tuple[str, int] | None = None,
    ) -> Arriving:
        """Begin a batch, or resume one that was begun: it may be too large for one transaction.

        `signature` and `cursor` as in `Arriving`; bytes that were begun before keep theirs.
        `instead` is a former batch, and the first of its lines that this one has again and whole:
        they leave quarantine. Planning sees nothing of it before `finish_batch`.
        """
        with self._db.write("begin_batch"):
            row = self.row_of(batch.id)
            if row is None:
                self._insert_batch(batch, signature, cursor)
            if instead is not None:
                self.bad_lines.take_back(*instead)
        return self.arriving(batch.id)

    def signed(self, beginning: str) -> list[tuple[str, str]]:
        """Id and signature of the batches whose signature begins so, as they came."""
        return [
            (str(batch), str(signature))
            for batch, signature in self._db.rows(
                "SELECT id, signature FROM batches WHERE signature >= ? AND signature < ?"
                " ORDER BY seq",
                (beginning, beginning + "\U0010ffff"),
            )
        ]

    def admitting(self, *, aside: bool = False) -> tuple[Arriving, ...]:
        """Unfinished batches: those being read, or with `aside` those set aside."""
        rows = self._db.rows(
            "SELECT id FROM batches INDEXED BY batches_arriving"
            " WHERE complete = 0 AND (aside <> '') = ? ORDER BY seq",
            (aside,),
        )
        return tuple(self.arriving(row[0]) for row in rows)

    def set_aside(self, batch_id: str, because: str, now: datetime) -> None:
        """A batch cannot be read on for the moment: from here on nothing else waits for it.

        It may be resumed and finished at any time.
        """
        with self._db.write("set_aside"):
            if self._db.do(
                "UPDATE batches SET aside = ?1 WHERE id = ?2 AND NOT complete AND aside <> ?1",
                (because, batch_id),
            ):
                self._db.event("batch.set_aside", batch_id, {"because": because}, now)

    def rivals(self, facts: Sequence[Fact]) -> list[list[StandingFact]]:
        """For each fact those admitted earlier with its key or its explicit id, as they came.

        A later version of an explicit id is stored as `id~something` and counts as that id. Of
        those that were erased only the id is known: it is not given again.
        """
        by_key: defaultdict[str, list[tuple[int, StandingFact]]] = defaultdict(list)
        by_id: defaultdict[str, list[tuple[int, StandingFact]]] = defaultdict(list)
        columns = "key, stem, seq, id, answer, valid_from, valid_until, validity"
        keys = [key_of(fact) for fact in facts]
        for chunk in chunks(sorted(set(keys))):
            for row in self._db.rows(
                f"SELECT {columns} FROM facts WHERE op <> 'retract' AND key IN ({marks(chunk)})",
                chunk,
            ):
                by_key[row[0]].append((row[2], standing(row[3:])))
        stems = sorted({stem_of(fact.id) for fact in facts})
        for chunk in chunks(stems):
            for row in self._db.rows(
                f"SELECT {columns} FROM facts WHERE op <> 'retract' AND stem IN ({marks(chunk)})",
                chunk,
            ):
                by_id[row[1]].append((row[2], standing(row[3:])))
        for stem, seq, former in self._retractions.erased(stems):
            gone = StandingFact(id=former, answer="", validity=Validity.RETRACTED)
            by_id[stem].append((seq, gone))
        found = []
        for fact, key in zip(facts, keys, strict=True):
            rivals = dict((*by_key.get(key, ()), *by_id.get(stem_of(fact.id), ())))
            found.append([rivals[seq] for seq in sorted(rivals)])
        return found

    def append_facts(
        self,
        batch_id: str,
        admitted: Sequence[tuple[Fact, Ruling]],
        quarantined: Sequence[Quarantined],
        now: datetime,
        *,
        line: int,
        position: int = 0,
        kept: int = KEPT,
    ) -> Arriving:
        """One chunk of a batch with what each fact means, and where the next chunk begins.

        `kept` as in `BadLines`. A chunk that ends no later than what was stored already changes
        nothing.
        """
        with self._db.write("append_facts"):
            row = self.row_of(batch_id)
            if row is None:
                raise NotFound(f"no batch {batch_id}")
            seq, complete, stored, _ = row
            if not complete and line > stored:
                self.append(seq, admitted, quarantined, now, kept)
                self._db.do(
                    "UPDATE batches SET line = ?, position = ? WHERE seq = ?",
                    (line, position, seq),
                )
        return self.arriving(batch_id)

    def finish_batch(self, batch_id: str, now: datetime) -> Admitted:
        """The batch is whole: its facts may be planned from now on, and its feed has been read up
        to the cursor that the batch was begun with.
        """
        with self._db.write("finish_batch"):
            row = self.row_of(batch_id)
            if row is None:
                raise NotFound(f"no batch {batch_id}")
            if row[1]:
                return self.admitted(batch_id, already=True)
            arriving = self.arriving(batch_id)
            if arriving.cursor and arriving.batch.feed is not None:
                self._feeds.put(arriving.batch.feed, arriving.cursor, now)
            return self._complete(row[0], batch_id, now)

    def _insert_batch(self, batch: Batch, signature: str, cursor: str = "") -> int:
        self._db.do(
            "INSERT INTO batches (id, name, source, received_at, signature, cursor, first_fact)"
            " VALUES (?, ?, ?, ?, ?, ?, (SELECT coalesce(max(seq), 0) + 1 FROM facts))",
            (batch.id, batch.name, batch.source, self._db.at(batch.received_at), signature, cursor),
        )
        return int(self._db.one("SELECT seq FROM batches WHERE id = ?", (batch.id,)))

    def _complete(self, seq: int, batch_id: str, now: datetime) -> Admitted:
        self._db.do("UPDATE batches SET complete = 1, aside = '' WHERE seq = ?", (seq,))
        admitted = self.admitted(batch_id)
        counts = {
            "accepted": admitted.batch.accepted,
            "known": admitted.known,
            "quarantined": admitted.batch.quarantined,
            "digest": self.digest(seq),
        }
        self._db.event("batch.admitted", batch_id, counts, now)
        return admitted

    def digest(self, batch: int) -> str:
        """One hash of all facts stored of a batch so far, as they were stored."""
        return str(self._db.one("SELECT digest FROM batches WHERE seq = ?", (batch,)))

    def row_of(self, batch_id: str) -> SqlRow | None:
        """Row number, completeness, next line and byte offset of a batch, if it is known."""
        return self._db.row(
            "SELECT seq, complete, line, position FROM batches WHERE id = ?", (batch_id,)
        )

    def admitted(self, batch_id: str, already: bool = False) -> Admitted:
        """What became of a batch's facts."""
        known, conflicts = self._db.rows(
            "SELECT known, conflicts FROM batches WHERE id = ?", (batch_id,)
        )[0]
        return Admitted(
            batch=self._batches.get(batch_id), already=already, known=known, conflicts=conflicts
        )

    def arriving(self, batch_id: str) -> Arriving:
        """How far a batch has been read."""
        complete, line, position, signature, cursor, aside = self._db.rows(
            "SELECT complete, line, position, signature, cursor, aside FROM batches WHERE id = ?",
            (batch_id,),
        )[0]
        return Arriving(
            batch=self._batches.get(batch_id),
            complete=bool(complete),
            line=line,
            position=position,
            signature=signature,
            cursor=cursor,
            aside=aside,
        )

    def append(
        self,
        batch: int,
        admitted: Sequence[tuple[Fact, Ruling]],
        quarantined: Sequence[Quarantined],
        now: datetime,
        kept: int = KEPT,
    ) -> None:
        """Within a change: store what each fact means, and the lines that were not admitted."""
        stored = [pair for pair in admitted if pair[1].relation not in _NOT_STORED]
        digests = self._store(stored, batch, now)
        replacing = [
            (fact, old)
            for fact, ruling in admitted
            if ruling.relation in _REPLACING
            for old in ruling.replaced
        ]
        self._replace(replacing, now)
        gone = [old for fact, old in replacing if fact.op is Operation.RETRACT]
        self._retractions.note(gone, "a line said so", now)
        self.bad_lines.add(batch, quarantined, kept)
        conflicts = sum(r.relation is FactRelation.CONFLICT for _, r in admitted)
        self._db.do(
            "UPDATE batches SET accepted = accepted + ?, known = known + ?,"
            " conflicts = conflicts + ?, quarantined = quarantined + ?, digest = ? WHERE seq = ?",
            (
                len(admitted) - conflicts,
                sum(r.relation is FactRelation.KNOWN for _, r in admitted),
                conflicts,
                len(quarantined),
                followed(self.digest(batch), digests),
                batch,
            ),
        )

    def _store(
        self, found: Sequence[tuple[Fact, Ruling]], batch: int, now: datetime
    ) -> list[bytes]:
        """Store facts as they were given; the digest of each."""
        first = int(self._db.one("SELECT coalesce(max(seq), 0) + 1 FROM facts"))
        recorded = self._db.at(now)
        rows = [
            fact_row(fact, ruling, batch, seq, recorded)
            for seq, (fact, ruling) in enumerate(found, first)
        ]
        stored = self._db.do_all(
            f"INSERT INTO facts ({LASTING}, validity, valid_until, state, salt, digest)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        self._db.expect(stored, len(found), "facts are stored")
        return [row[-1] for row in rows]

    def _replace(self, replacing: Sequence[tuple[Fact, str]], now: datetime) -> None:
        """Each fact takes the place of an older one, now or once it becomes valid."""
        others = sum(fact.id != old or fact.op is Operation.RETRACT for fact, old in replacing)
        self._db.expect(others, len(replacing), "no fact replaces itself")
        lost = [(fact, old) for fact, old in replacing if not to_come(fact, now)]
        done = self._db.do_all(
            f"UPDATE facts SET validity = ?, replaced_by = ?, lost_after = {LOST_NOW},"
            " state = CASE state WHEN 'pending' THEN 'idle' ELSE state END WHERE id = ?",
            [(lost_by(fact).value, fact.id, old) for fact, old in lost],
        )
        # What a fact replaces from a later day on stays valid until then.
        done += self._db.do_all(
            "UPDATE facts SET valid_until = min(coalesce(valid_until, ?1), ?1), replaced_by = ?2"
            " WHERE id = ?3",
            [
                (instant(fact.valid_from), fact.id, old)
                for fact, old in replacing
                if to_come(fact, now)
            ],
        )
        self._db.expect(done, len(replacing), "facts are replaced")
