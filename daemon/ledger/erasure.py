"""Takes a retracted fact's text out of the whole file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any, Final

from daemon.ledger.database import Database, SqlRow, make_durable, translated
from daemon.ledger.events import ERASURES, EVENTS_ERASED, FACT_ERASED
from daemon.ledger.text import text_row
from policies.facts.traces import ERASED, Trace, scrubbed, tells
from policies.records import Fact, Operation

UNCLEAN: Final = "unclean"
MERGED_PAGES: Final = 500
VACUUM_WAIT_S: Final = 30.0
SCANNED: Final = 1000
_TELLING: Final = (
    ("batches", "seq", ("aside",)),
    ("quarantine", "id", ("reason", "text")),
    ("plans", "id", ("because", "error")),
    ("retractions", "fact", ("because",)),
    ("events", "seq", ("payload",)),
)
_INSTEAD: Final = {
    "batches": f"aside = '{ERASED}'",
    "quarantine": f"reason = '{ERASED}', text = ''",
    "retractions": f"because = '{ERASED}'",
    "plans": f"because = '{ERASED}', error = NULL",
    "events": "payload = '', salt = ''",
}
# They hold numbers and hashes only, and without them an erasure could not be told from a forgery.
_SPARED: Final = {"events": f"AND kind NOT IN ({', '.join(repr(kind) for kind in ERASURES)})"}
# Both kinds of verdict by one text, since a plan has several scorecards.
_KEY: Final = {"verdicts": "plan", "scorecards": "plan || ' ' || model"}


class Erasure:
    """Erases tables, then index and free pages."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def erase(self, certificates: Mapping[str, Mapping[str, Any]], now: datetime) -> None:
        """Take these facts' text out of every table, and keep what certifies it.

        `certificates` by handle. Erased already is success. Pages and index are cleaned by
        `purge_index` and `compact` afterwards: `unclean` says so until `cleaned`.
        """
        with self._db.write("erase"):
            for handle, certificate in certificates.items():
                row = self._db.row(
                    "SELECT f.seq, f.id, f.stem, f.key, f.body FROM retractions r"
                    " JOIN facts f ON f.seq = r.fact"
                    " WHERE r.handle = ? AND r.erased_at IS NULL",
                    (handle,),
                )
                if row is not None:
                    self._erase(handle, row, certificate, now)
            self._db.set_meta(UNCLEAN, "yes")

    def erase_mentions(self, traces: Sequence[Trace], now: datetime) -> Iterator[None]:
        """Take every mention of facts out of quarantine, verdicts, plans and events; with pauses.

        The chain of events stays valid: what an event said is gone, its salted hash stays, and one
        more event names those that were erased.
        """
        for table, key, columns in _TELLING:
            last = -1
            while rows := self._db.rows(
                f"SELECT {key}, {', '.join(columns)} FROM {table} WHERE {key} > ?"
                f" {_SPARED.get(table, '')} ORDER BY {key} LIMIT {SCANNED}",
                (last,),
            ):
                last = rows[-1][0]
                found = [row[0] for row in rows if any(tells(traces, v or "") for v in row[1:])]
                with self._db.write(f"erase_{table}"):
                    self._db.do_all(
                        f"UPDATE {table} SET {_INSTEAD[table]} WHERE {key} = ?",
                        [(row_key,) for row_key in found],
                    )
                    if table == "events" and found:
                        said = {"events": found, "for": sorted(trace.handle for trace in traces)}
                        self._db.event(EVENTS_ERASED, "ledger", said, now)
                yield None
        for table in ("verdicts", "scorecards"):
            for rowid, body in self._bodies(table):
                whole = json.loads(body)
                if (left := scrubbed(whole, traces)) != whole:
                    with self._db.write(f"erase_{table}"):
                        self._db.do(
                            f"UPDATE {table} SET body = ? WHERE {_KEY[table]} = ?",
                            (json.dumps(left, ensure_ascii=False), rowid),
                        )
                yield None

    def _bodies(self, table: str) -> Iterator[SqlRow]:
        for (key,) in self._db.rows(f"SELECT {_KEY[table]} FROM {table}"):
            yield from self._db.rows(
                f"SELECT {_KEY[table]}, body FROM {table} WHERE {_KEY[table]} = ?", (key,)
            )

    def _erase(
        self, handle: str, row: SqlRow, certificate: Mapping[str, Any], now: datetime
    ) -> None:
        seq, identity, stem, key, body = row
        if seq <= int(self._db.meta("indexed") or 0):
            self._db.do(
                "INSERT INTO facts_text (facts_text, rowid, prompt, answer, subject, relation,"
                " paraphrases) VALUES ('delete', ?, ?, ?, ?, ?, ?)",
                text_row(seq, Fact.model_validate_json(body)),
            )
        self._db.do("DELETE FROM paraphrases WHERE fact = ?", (seq,))
        self._db.do("UPDATE facts SET replaced_by = ? WHERE replaced_by = ?", (handle, identity))
        asked = self._db.rows(
            "SELECT seq FROM facts WHERE op = 'retract' AND (key = ? OR stem = ?)", (key, stem)
        )
        for (line,) in asked:
            self._blank(line, f"~retract~{line}~{handle}", handle, Operation.RETRACT)
        self._blank(seq, handle, handle, Operation.ASSERT)
        event = f"retraction:{handle}"
        gone = {"facts": [seq, *(line for (line,) in asked)]}
        self._db.event(FACT_ERASED, event, gone, now)
        last = self._db.rows("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1")[0]
        whole = {**certificate, "event": {"seq": last[0], "hash": last[1]}}
        self._db.do(
            "UPDATE retractions SET erased_at = ?, certificate = ? WHERE handle = ?",
            (self._db.at(now), json.dumps(whole, ensure_ascii=False), handle),
        )

    def _blank(self, seq: int, identity: str, handle: str, op: Operation) -> None:
        nothing = Fact(id=handle, prompt="(erased)", answer="(erased)", op=op)
        done = self._db.do(
            "UPDATE facts SET id = ?, stem = ?, key = ?, answer = '', body = ?, salt = x'',"
            " replaced_by = NULL, state = 'idle' WHERE seq = ?",
            (identity, handle, handle, nothing.model_dump_json(exclude_defaults=True), seq),
        )
        self._db.expect(done, 1, "a fact is erased")

    # --- what is left in the file --------------------------------------------------------------

    @property
    def unclean(self) -> bool:
        """Whether free pages or the index may still hold words of what was erased."""
        return self._db.meta(UNCLEAN) == "yes"

    def purge_index(self) -> Iterator[None]:
        """Merge the search index into one piece, in which nothing deleted is left; with pauses."""
        pages = -MERGED_PAGES
        while True:
            before = self._db.connection.total_changes
            with self._db.write("purge_index"):
                self._db.do(
                    "INSERT INTO facts_text (facts_text, rank) VALUES ('merge', ?)", (pages,)
                )
            if self._db.connection.total_changes - before < 2:
                return
            pages = MERGED_PAGES
            yield None

    def compact(self) -> None:
        """Rewrite the file: afterwards no free page holds what was erased.

        Takes long where the ledger is large: call it in a thread; it has its own connection.
        """
        if not self._db.path.exists():  # a ledger in memory has no other connection
            self._db.connection.execute("VACUUM")
            return
        try:
            with closing(
                sqlite3.connect(self._db.path, timeout=VACUUM_WAIT_S, isolation_level=None)
            ) as own:
                make_durable(own)
                Database.over(own, self._db.path).read_through()
                own.execute("VACUUM")
        except sqlite3.DatabaseError as error:
            raise translated(error, self._db.path) from error

    def cleaned(self) -> None:
        """Index and pages are clean."""
        with self._db.write("cleaned"):
            self._db.set_meta(UNCLEAN, "no")
