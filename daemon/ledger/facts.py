"""Batches, facts, quarantine and feeds in the ledger."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from daemon.ledger.database import LedgerDb, Row, stamp, unstamp
from daemon.ledger.records import FactCounts
from daemon.ledger.schema import salted
from daemon.ledger.search import near
from policies.errors import Ambiguous, NotFound
from policies.facts.supersession import stem_of, version_id, version_of
from policies.planning import Waiting
from policies.records import Batch, Fact, Quarantined

_MARK_SALT: Final = "mark_salt"
_BATCH: Final = "id, name, received_at, source, accepted, quarantined"
# SQLite before 3.32 takes 999 parameters; one chunk of names stays below that.
_CHUNK: Final = 900


VALID: Final = (
    "f.validity = 'valid' AND (f.valid_from IS NULL OR f.valid_from <= :now)"
    " AND (f.valid_until IS NULL OR f.valid_until > :now)"
)


class LedgerFacts(LedgerDb):
    """What was dropped, and what of it is valid."""

    # --- reading -------------------------------------------------------------------------------

    def known_batch(self, batch_id: str) -> bool:
        """Whether these bytes have been admitted whole."""
        return bool(self._one("SELECT complete FROM batches WHERE id = ?", (batch_id,)))

    def batch(self, name: str) -> Batch:
        """By id, by the beginning of its id, or by file name (the latest of that name)."""
        row = self._row(f"SELECT {_BATCH} FROM batches WHERE id = ?", (name,))
        if row is None:
            row = self._row(
                f"SELECT {_BATCH} FROM batches WHERE name = ? ORDER BY seq DESC LIMIT 1",
                (name,),
            )
        if row is not None:
            return _batch_of(row)
        beginning = name.replace("%", "").replace("_", "")
        rows = self._rows(
            f"SELECT {_BATCH} FROM batches WHERE id >= ? AND id < ? LIMIT 2",
            (beginning, beginning + "\U0010ffff"),
        )
        if not beginning or not rows:
            raise NotFound(f"no batch {name}; 'palorad status' lists them")
        if len(rows) > 1:
            raise Ambiguous(f"more than one batch begins with {name}; write more of its id")
        return _batch_of(rows[0])

    def place_of(self, batch_id: str) -> int | None:
        """A batch's place in the order of arrival, from 1; None where there is none of that id."""
        found = self._one("SELECT seq FROM batches WHERE id = ?", (batch_id,))
        return None if found is None else int(found)

    def batches(self, limit: int = 100) -> tuple[Batch, ...]:
        """The latest batches, the newest first."""
        rows = self._rows(
            f"SELECT {_BATCH} FROM batches WHERE complete ORDER BY seq DESC LIMIT ?",
            (limit,),
        )
        return tuple(_batch_of(row) for row in rows)

    def facts(
        self,
        *,
        batch_id: str | None = None,
        ids: Sequence[str] | None = None,
        state: str | None = None,
        valid_at: datetime | None = None,
        limit: int | None = None,
    ) -> tuple[Fact, ...]:
        """Facts in the order in which they came, all conditions together.

        `ids` keeps the order in which they were asked for.
        """
        if ids is not None:
            found = {f.id: f for chunk in chunks(ids) for f in self._facts_by_id(chunk)}
            return tuple(found[i] for i in ids if i in found)
        where, parameters = ["op <> 'retract'"], {}
        if batch_id is not None:
            where.append("batch = (SELECT seq FROM batches WHERE id = :batch)")
            parameters["batch"] = batch_id
        if state is not None:
            where.append("state = :state")
            parameters["state"] = state
        if valid_at is not None:
            where.append(VALID)
            parameters["now"] = stamp(valid_at)
        sql = f"SELECT body FROM facts f WHERE {' AND '.join(where)} ORDER BY seq"
        bound = "" if limit is None else f" LIMIT {int(limit)}"
        return tuple(Fact.model_validate_json(r[0]) for r in self._rows(sql + bound, parameters))

    def _facts_by_id(self, ids: Sequence[str]) -> Iterator[Fact]:
        for (body,) in self._rows(
            f"SELECT body FROM facts WHERE id IN ({marks(ids)})",
            ids,
        ):
            yield Fact.model_validate_json(body)

    def batches_of(self, ids: Sequence[str]) -> dict[str, str]:
        """The batch by which each fact came."""
        return {
            fact_id: batch
            for chunk in chunks(ids)
            for fact_id, batch in self._rows(
                "SELECT f.id, b.id FROM facts f JOIN batches b ON b.seq = f.batch"
                f" WHERE f.id IN ({marks(chunk)})",
                chunk,
            )
        }

    def fact_state(self, fact_id: str) -> dict[str, Any]:
        """Where one fact stands: batch, validity, state, tries, the plan that taught it."""
        row = self._row(
            "SELECT b.id, b.name, f.validity, f.replaced_by, f.state, f.tries, f.learnt, f.plan"
            " FROM facts f JOIN batches b ON b.seq = f.batch WHERE f.id = ?",
            (fact_id,),
        )
        if row is None:
            raise NotFound(f"no fact {fact_id}")
        names = ("batch", "batch_name", "validity", "replaced_by", "state", "tries", "learnt")
        return dict(zip((*names, "plan"), row, strict=True))

    def fact_counts(self, batch_id: str | None = None) -> FactCounts:
        """How many facts stand where, of one batch or (slower) of all."""
        where = "" if batch_id is None else "WHERE batch = (SELECT seq FROM batches WHERE id = ?)"
        counts = {
            str(state): int(number)
            for state, number in self._rows(
                f"SELECT state, count(*) FROM facts {where} GROUP BY state",
                () if batch_id is None else (batch_id,),
            )
        }
        return FactCounts(**counts)

    def not_before(self, batch_id: str, now: datetime) -> datetime | None:
        """When the first fact of a batch becomes valid, if it waits for nothing but that."""
        first = self._one(
            "SELECT min(coalesce(valid_from, '')) FROM facts WHERE state = 'pending'"
            " AND batch = (SELECT seq FROM batches WHERE id = ?)",
            (batch_id,),
        )
        return unstamp(first) if first and first > stamp(now) else None

    def unlearnt_count(self) -> int:
        """How many facts were given up because no candidate learnt them."""
        return int(self._one("SELECT count(*) FROM facts WHERE state = 'unlearnt'"))

    def quarantined(self, batch_id: str, limit: int = 1000) -> tuple[Quarantined, ...]:
        """The lines of a batch that were not admitted, in their order."""
        rows = self._rows(
            "SELECT line, kind, reason, text FROM quarantine WHERE batch ="
            " (SELECT seq FROM batches WHERE id = ?) ORDER BY line LIMIT ?",
            (batch_id, limit),
        )
        return tuple(
            Quarantined(line=line, kind=kind, reason=reason, text=text)
            for line, kind, reason, text in rows
        )

    def totals(self) -> dict[str, int]:
        """Counts over everything that has arrived."""
        row = self._row(
            "SELECT count(*), coalesce(sum(accepted), 0), coalesce(sum(known), 0),"
            " coalesce(sum(quarantined), 0) FROM batches WHERE complete"
        )
        names = ("batches", "accepted", "known", "quarantined")
        return dict(zip(names, row or (0, 0, 0, 0), strict=True))

    def waiting(self, now: datetime, limit: int) -> tuple[Waiting, ...]:
        """Facts to be learnt, urgent ones first, then as they came."""
        first = self._one("SELECT min(first_fact) FROM batches WHERE complete = 0 AND aside = ''")
        rows: list[Row] = []
        for urgent in (1, 0):
            if len(rows) < limit:
                rows += self._rows(
                    "SELECT f.id, b.id, b.alone, f.tries, f.urgent, f.recorded_at"
                    " FROM facts f JOIN batches b"
                    f" ON b.seq = f.batch WHERE f.state = 'pending' AND f.urgent = :urgent"
                    f" AND f.seq < :first AND b.aside = '' AND {VALID} ORDER BY f.seq LIMIT :limit",
                    {
                        "urgent": urgent,
                        "now": stamp(now),
                        "first": first if first is not None else 1 << 62,
                        "limit": limit - len(rows),
                    },
                )
        return tuple(
            Waiting(id=i, batch=b, alone=bool(a), tries=t, urgent=bool(u), since=unstamp(at))
            for i, b, a, t, u, at in rows
        )

    # --- search --------------------------------------------------------------------------------

    def index_text(self, limit: int = 2000) -> int:
        """Make up to `limit` more facts searchable; how many were. Called while idle."""
        done = int(self.meta("indexed") or 0)
        rows = self._rows(
            "SELECT seq, body FROM facts WHERE seq > ? AND op <> 'retract' ORDER BY seq LIMIT ?",
            (done, limit),
        )
        if not rows:
            return 0
        with self._write("index_text"):
            self._do_all(
                "INSERT INTO facts_text (rowid, prompt, answer, subject, relation, paraphrases)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                [text_row(seq, Fact.model_validate_json(body)) for seq, body in rows],
            )
            self._set_meta("indexed", str(rows[-1][0]))
        return len(rows)

    def search(self, text: str, limit: int = 20) -> tuple[Fact, ...]:
        """Facts about a prompt: the same paraphrase first, then by likeness of words."""
        key = " ".join(text.split()).casefold()
        exact = self._rows(
            "SELECT body FROM facts WHERE (key = ? OR id = ?) AND op <> 'retract'"
            " ORDER BY seq DESC LIMIT ?",
            (key, text, limit),
        )
        bodies = [*(row[0] for row in exact), *near(self._rows, text, limit)]
        found = {fact.id: fact for fact in map(Fact.model_validate_json, bodies)}
        return tuple(found.values())[:limit]

    # --- retraction ----------------------------------------------------------------------------

    def _note_retracted(self, ids: Sequence[str], because: str, now: datetime) -> None:
        """Begin to follow retracted facts on their way out, each under a handle of its own.

        Those that are followed already stay as they are.
        """
        for fact_id in ids:
            handle, salt = f"r-{secrets.token_hex(8)}", secrets.token_hex(16)
            mark, version = salted(self._mark_salt(), stem_of(fact_id)), version_of(fact_id)
            noted = self._do(
                "INSERT INTO retractions (fact, handle, salt, digest, mark, version, because,"
                " asked_at, last_batch) SELECT seq, ?, ?, ?, ?, ?, ?, ?,"
                " (SELECT coalesce(max(seq), 0) FROM batches) FROM facts WHERE id = ?"
                " AND validity = 'retracted' ON CONFLICT (fact) DO NOTHING",
                (
                    *(handle, salt, salted(salt, fact_id), mark, version),
                    *(because, self._at(now), fact_id),
                ),
            )
            followed = self._one(
                "SELECT count(*) FROM retractions r JOIN facts f ON f.seq = r.fact WHERE f.id = ?",
                (fact_id,),
            )
            self._expect(followed, 1, "a retraction is followed")
            if noted:
                said = {"because": because}
                self._event("fact.retracted", f"retraction:{handle}", said, now)

    def _mark_salt(self) -> str:
        """By this salt the ids of erased facts are known again; made at the first retraction."""
        salt = self.meta(_MARK_SALT)
        if salt is None:
            salt = secrets.token_hex(16)
            self._set_meta(_MARK_SALT, salt)
        return salt

    def _erased(self, stems: Sequence[str]) -> Iterator[tuple[str, int, str]]:
        """Stem, place and former id of every erased fact that was a version of one of `stems`."""
        salt = self.meta(_MARK_SALT)
        by_mark = {} if salt is None else {salted(salt, stem): stem for stem in stems}
        for chunk in chunks(list(by_mark)):
            for mark, seq, version in self._rows(
                "SELECT mark, fact, version FROM retractions WHERE erased_at IS NOT NULL"
                f" AND mark IN ({marks(chunk)})",
                chunk,
            ):
                yield by_mark[mark], seq, version_id(by_mark[mark], version)

    # --- feeds ---------------------------------------------------------------------------------

    def feed_cursor(self, name: str) -> str | None:
        """Where the feed was read up to, as its reader wrote it."""
        found = self._one("SELECT cursor FROM feeds WHERE name = ?", (name,))
        return None if found is None else str(found)

    def feeds(self) -> dict[str, datetime]:
        """When each feed last gave something."""
        rows = self._rows("SELECT name, polled_at FROM feeds ORDER BY name")
        return {name: unstamp(at) for name, at in rows}

    def set_feed_cursor(self, name: str, cursor: str, now: datetime) -> None:
        """Remember where a feed stands although it brought no batch."""
        with self._write("set_feed_cursor"):
            self._set_cursor(name, cursor, now)

    def _set_cursor(self, name: str, cursor: str, now: datetime) -> None:
        self._do("INSERT OR REPLACE INTO feeds VALUES (?, ?, ?)", (name, cursor, self._at(now)))


def _batch_of(row: Row) -> Batch:
    identity, name, received_at, source, accepted, quarantined = row
    return Batch(
        id=identity,
        name=name,
        received_at=unstamp(received_at),
        source=source,
        accepted=accepted,
        quarantined=quarantined,
    )


def text_row(seq: int, fact: Fact) -> tuple[Any, ...]:
    """A fact as the search index holds it."""
    paraphrases = "\n".join((*fact.paraphrases, *fact.eval_prompts))
    return (seq, fact.prompt, fact.answer, fact.subject or "", fact.relation or "", paraphrases)


def chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    """Pieces small enough for one statement."""
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]


def marks(values: Sequence[Any]) -> str:
    """A question mark for each value."""
    return ",".join("?" * len(values))
