"""Retracted facts in the ledger: asked for, no longer served, erased, certified."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any, Final

from daemon.ledger.admission import key_of
from daemon.ledger.database import Row, translated, unstamp
from daemon.ledger.facts import text_row
from daemon.ledger.records import Retraction, Tainted
from daemon.ledger.revisions import LedgerRevisions
from daemon.ledger.schema import salted
from policies.errors import NotFound
from policies.facts.traces import ERASED, Trace, scrubbed, tells
from policies.records import OPEN_STATES, Fact, Operation

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
# Both kinds of verdict by one text, since a plan has several scorecards.
_KEY: Final = {"verdicts": "plan", "scorecards": "plan || ' ' || model"}
_COLUMNS: Final = (
    "r.handle, r.fact, f.id, r.salt, r.digest, r.because, r.asked_at, r.last_batch,"
    " r.unloaded_at, r.erased_at, r.certified_at, r.certificate"
)
_SAW: Final = (
    "SELECT a.sha256 FROM adapters a WHERE EXISTS (SELECT 1 FROM plan_facts p"
    " JOIN retractions r ON r.fact = p.fact WHERE p.plan = a.plan"
    " AND r.handle IN (SELECT value FROM json_each(?)))"
)


class LedgerRetractions(LedgerRevisions):
    """From the request to the certificate."""

    # --- reading -------------------------------------------------------------------------------

    def retractions(self, *, unfinished: bool = False) -> tuple[Retraction, ...]:
        """All of them, or those without a certificate, in the order of their facts."""
        where = "WHERE r.certified_at IS NULL" if unfinished else ""
        rows = self._rows(
            f"SELECT {_COLUMNS} FROM retractions r JOIN facts f ON f.seq = r.fact {where}"
            " ORDER BY r.fact"
        )
        known = self._known_to(self.target().lineage) if rows else frozenset()
        return tuple(_retraction(row, served=row[1] in known) for row in rows)

    def retraction(self, name: str) -> Retraction:
        """By its handle, or by the id that the fact had; raises `NotFound`."""
        for found in self.retractions():
            if name in (found.handle, found.id) or found.digest == salted(found.salt, name):
                return found
        raise NotFound(f"nothing was retracted under {name!r}; 'palorad status' lists what was")

    def about(self, subject: str, relation: str) -> tuple[str, ...]:
        """Every fact of a key that is not retracted, superseded ones too."""
        asked = Fact(id="", prompt="", answer="", subject=subject, relation=relation)
        rows = self._rows(
            "SELECT id FROM facts WHERE key = ? AND op <> 'retract' AND validity <> 'retracted'"
            " ORDER BY seq",
            (key_of(asked),),
        )
        return tuple(row[0] for row in rows)

    def erasable(self) -> tuple[Retraction, ...]:
        """Those that neither the target lineage nor a plan under way knows any more."""
        states = ",".join(f"'{state.value}'" for state in OPEN_STATES)
        busy = {
            row[0]
            for row in self._rows(
                "SELECT DISTINCT p.fact FROM plan_facts p JOIN retractions r ON r.fact = p.fact"
                f" JOIN plans ON plans.id = p.plan WHERE plans.state IN ({states})"
            )
        }
        return tuple(
            found
            for found in self.retractions(unfinished=True)
            if not found.served and found.fact not in busy
        )

    def retracted_facts(self, handles: Sequence[str]) -> dict[str, Fact]:
        """The facts as they still stand, by handle; without those that are erased."""
        rows = self._rows(
            "SELECT r.handle, f.body FROM retractions r JOIN facts f ON f.seq = r.fact"
            " WHERE r.erased_at IS NULL"
        )
        wanted = set(handles)
        return {h: Fact.model_validate_json(body) for h, body in rows if h in wanted}

    def to_forget(self) -> tuple[Fact, ...]:
        """Retracted facts that the target lineage knows: what a rebuild has to forget."""
        handles = [found.handle for found in self.retractions(unfinished=True) if found.served]
        return tuple(self.retracted_facts(handles).values())

    def _known_to(self, lineage: Sequence[str]) -> frozenset[int]:
        rows = self._rows(
            "SELECT DISTINCT p.fact FROM plan_facts p JOIN retractions r ON r.fact = p.fact"
            " JOIN adapters a ON a.plan = p.plan"
            " WHERE a.sha256 IN (SELECT value FROM json_each(?))",
            (json.dumps(list(lineage)),),
        )
        return frozenset(row[0] for row in rows)

    def bars(self, lineage: Sequence[str]) -> bool:
        """Whether a lineage knows a fact that was retracted."""
        return self.forbidden_count(lineage) > 0

    def tainted(self, handles: Sequence[str]) -> Tainted:
        """Everything published that learnt or replayed one of these retracted facts."""
        saw = {row[0] for row in self._rows(_SAW, (json.dumps(list(handles)),))}
        names, models = set(), set()
        lineages: dict[int, tuple[str, ...]] = {}
        for number, lineage, name, sha in self._rows(
            "SELECT number, lineage, served_name, sha256 FROM revisions"
        ):
            lineages[number] = tuple(json.loads(lineage))
            if saw & set(lineages[number]):
                names.add(name)
                models.add(sha)
        for parent, replaces, adapter, served in self._rows(
            "SELECT parent, replaces, adapter, served FROM plans WHERE served IS NOT NULL"
        ):
            kept = set(lineages.get(parent, ())) - set(json.loads(replaces))
            if saw & {*kept, adapter}:
                published = json.loads(served)
                names.add(published["name"])
                models.add(published["sha256"])
        paths: dict[str, str] = dict(self._rows("SELECT sha256, path FROM adapters"))
        return Tainted(
            adapters={sha: paths[sha] for sha in sorted(saw)},
            served=tuple(sorted(names)),
            models=tuple(sorted(sha for sha in models if sha)),
        )

    # --- going on ------------------------------------------------------------------------------

    def unloaded(self, handles: Sequence[str], now: datetime) -> None:
        """No replica has any revision loaded that knows these."""
        with self._write("unloaded"):
            for handle in handles:
                if self._do(
                    "UPDATE retractions SET unloaded_at = ? WHERE handle = ?"
                    " AND unloaded_at IS NULL",
                    (self._at(now), handle),
                ):
                    self._event("fact.unloaded", f"retraction:{handle}", {}, now)

    def erase(self, certificates: Mapping[str, Mapping[str, Any]], now: datetime) -> None:
        """Take these facts' text out of every table, and keep what certifies it.

        `certificates` by handle. Erased already is success. Pages and index are cleaned by
        `purge_index` and `compact` afterwards: `unclean` says so until `cleaned`.
        """
        with self._write("erase"):
            for handle, certificate in certificates.items():
                row = self._row(
                    "SELECT f.seq, f.id, f.stem, f.key, f.body FROM retractions r"
                    " JOIN facts f ON f.seq = r.fact"
                    " WHERE r.handle = ? AND r.erased_at IS NULL",
                    (handle,),
                )
                if row is not None:
                    self._erase(handle, row, certificate, now)
            self._set_meta(UNCLEAN, "yes")

    def erase_mentions(self, traces: Sequence[Trace]) -> Iterator[None]:
        """Take what tells of facts out of quarantine, verdicts, plans and events; with pauses.

        The chain of events holds on: what an event said is gone, its salted hash stands.
        """
        for table, key, columns in _TELLING:
            last = -1
            while rows := self._rows(
                f"SELECT {key}, {', '.join(columns)} FROM {table} WHERE {key} > ?"
                f" ORDER BY {key} LIMIT {SCANNED}",
                (last,),
            ):
                last = rows[-1][0]
                told = [row[0] for row in rows if any(tells(traces, v or "") for v in row[1:])]
                with self._write(f"erase_{table}"):
                    self._do_all(
                        f"UPDATE {table} SET {_INSTEAD[table]} WHERE {key} = ?",
                        [(row_key,) for row_key in told],
                    )
                yield None
        for table in ("verdicts", "scorecards"):
            for rowid, body in self._bodies(table):
                whole = json.loads(body)
                if (left := scrubbed(whole, traces)) != whole:
                    with self._write(f"erase_{table}"):
                        self._do(
                            f"UPDATE {table} SET body = ? WHERE {_KEY[table]} = ?",
                            (json.dumps(left, ensure_ascii=False), rowid),
                        )
                yield None

    def _bodies(self, table: str) -> Iterator[Row]:
        for (key,) in self._rows(f"SELECT {_KEY[table]} FROM {table}"):
            yield from self._rows(
                f"SELECT {_KEY[table]}, body FROM {table} WHERE {_KEY[table]} = ?", (key,)
            )

    def _erase(self, handle: str, row: Row, certificate: Mapping[str, Any], now: datetime) -> None:
        seq, identity, stem, key, body = row
        if seq <= int(self.meta("indexed") or 0):
            self._do(
                "INSERT INTO facts_text (facts_text, rowid, prompt, answer, subject, relation,"
                " paraphrases) VALUES ('delete', ?, ?, ?, ?, ?, ?)",
                text_row(seq, Fact.model_validate_json(body)),
            )
        self._do("DELETE FROM paraphrases WHERE fact = ?", (seq,))
        self._do("UPDATE facts SET replaced_by = ? WHERE replaced_by = ?", (handle, identity))
        asked = self._rows(
            "SELECT seq FROM facts WHERE op = 'retract' AND (key = ? OR stem = ?)", (key, stem)
        )
        for (line,) in asked:
            self._blank(line, f"~retract~{line}~{handle}", handle, Operation.RETRACT)
        self._blank(seq, handle, handle, Operation.ASSERT)
        event = f"retraction:{handle}"
        self._event("fact.erased", event, {}, now)
        last = self._rows("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1")[0]
        whole = {**certificate, "event": {"seq": last[0], "hash": last[1]}}
        self._do(
            "UPDATE retractions SET erased_at = ?, certificate = ? WHERE handle = ?",
            (self._at(now), json.dumps(whole, ensure_ascii=False), handle),
        )

    def _blank(self, seq: int, identity: str, handle: str, op: Operation) -> None:
        nothing = Fact(id=handle, prompt="(erased)", answer="(erased)", op=op)
        done = self._do(
            "UPDATE facts SET id = ?, stem = ?, key = ?, answer = '', body = ?,"
            " replaced_by = NULL, state = 'idle' WHERE seq = ?",
            (identity, handle, handle, nothing.model_dump_json(exclude_defaults=True), seq),
        )
        self._expect(done, 1, "a fact is erased")

    def certified(self, handle: str, now: datetime) -> None:
        """The certificate lies where people look for it."""
        with self._write("certified"):
            if self._do(
                "UPDATE retractions SET certified_at = ? WHERE handle = ? AND certified_at IS NULL",
                (self._at(now), handle),
            ):
                self._event("fact.certified", f"retraction:{handle}", {}, now)

    # --- what is left in the file --------------------------------------------------------------

    @property
    def unclean(self) -> bool:
        """Whether free pages or the index may still hold words of what was erased."""
        return self.meta(UNCLEAN) == "yes"

    def purge_index(self) -> Iterator[None]:
        """Merge the search index into one piece, in which nothing deleted is left; with pauses."""
        pages = -MERGED_PAGES
        while True:
            before = self._db.conn.total_changes
            with self._write("purge_index"):
                self._do("INSERT INTO facts_text (facts_text, rank) VALUES ('merge', ?)", (pages,))
            if self._db.conn.total_changes - before < 2:
                return
            pages = MERGED_PAGES
            yield None

    def compact(self) -> None:
        """Rewrite the file, so that no free page holds what was erased.

        Takes long where the ledger is large: call it in a thread; it has its own connection.
        """
        if not self._path.exists():  # a ledger in memory has no other connection
            self._db.conn.execute("VACUUM")
            return
        try:
            with closing(
                sqlite3.connect(self._path, timeout=VACUUM_WAIT_S, isolation_level=None)
            ) as own:
                own.execute("VACUUM")
                own.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.DatabaseError as error:
            raise translated(error, self._path) from error

    def cleaned(self) -> None:
        """Index and pages are clean."""
        with self._write("cleaned"):
            self._set_meta(UNCLEAN, "no")


def _retraction(row: Row, *, served: bool) -> Retraction:
    handle, fact, identity, salt, digest, because, asked, last_batch, *reached, text = row
    unloaded, erased, certified = reached
    return Retraction(
        handle=handle,
        fact=fact,
        id=None if erased else identity,
        salt=salt,
        digest=digest,
        because=because,
        asked_at=unstamp(asked),
        last_batch=last_batch,
        unloaded_at=None if unloaded is None else unstamp(unloaded),
        erased_at=None if erased is None else unstamp(erased),
        certified_at=None if certified is None else unstamp(certified),
        served=served,
        certificate=None if text is None else json.loads(text),
    )
