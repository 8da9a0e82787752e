"""Retracted facts: asked for, no longer served, certified."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from daemon.ledger.chain import salted
from daemon.ledger.database import Database, SqlRow, chunks, marks, unstamp
from daemon.ledger.facts import LOST_NOW, Facts
from daemon.ledger.knowledge import Knowledge
from daemon.ledger.records import Retraction, Tainted
from daemon.ledger.revisions import Revisions
from policies.errors import NotFound
from policies.facts.supersession import stem_of, version_id, version_of
from policies.notifications import Notification
from policies.records import OPEN_STATES, Fact

_MARK_SALT: Final = "mark_salt"
_COLUMNS: Final = (
    "r.handle, r.fact, f.id, r.salt, r.digest, r.because, r.asked_at, r.last_batch,"
    " r.unloaded_at, r.erased_at, r.certified_at, r.certificate"
)


class Retractions:
    """From the request to the certificate."""

    def __init__(
        self, db: Database, facts: Facts, revisions: Revisions, knowledge: Knowledge
    ) -> None:
        self._db = db
        self._facts = facts
        self._revisions = revisions
        self._knowledge = knowledge

    # --- reading -------------------------------------------------------------------------------

    def all(self, *, unfinished: bool = False) -> tuple[Retraction, ...]:
        """All of them, or those without a certificate, in the order of their facts."""
        where = "WHERE r.certified_at IS NULL" if unfinished else ""
        rows = self._db.rows(
            f"SELECT {_COLUMNS} FROM retractions r JOIN facts f ON f.seq = r.fact {where}"
            " ORDER BY r.fact"
        )
        known = (
            self._knowledge.retracted_in(self._revisions.target().lineage) if rows else frozenset()
        )
        return tuple(_retraction(row, served=row[1] in known) for row in rows)

    def get(self, name: str) -> Retraction:
        """By its handle, or by the id that the fact had; raises `NotFound`."""
        for found in self.all():
            if name in (found.handle, found.id) or found.digest == salted(found.salt, name):
                return found
        raise NotFound(f"nothing was retracted under {name!r}; 'palorad status' lists what was")

    def erasable(self) -> tuple[Retraction, ...]:
        """Those that neither the target lineage nor a plan under way knows any more."""
        states = ",".join(f"'{state.value}'" for state in OPEN_STATES)
        rows = self._db.rows(f"SELECT id FROM plans WHERE state IN ({states})")
        busy = self._knowledge.retracted_in(plans=[row[0] for row in rows])
        return tuple(
            found
            for found in self.all(unfinished=True)
            if not found.served and found.fact not in busy
        )

    def facts(self, handles: Sequence[str]) -> dict[str, Fact]:
        """The facts as they still stand, by handle; without those that are erased."""
        rows = self._db.rows(
            "SELECT r.handle, f.body FROM retractions r JOIN facts f ON f.seq = r.fact"
            " WHERE r.erased_at IS NULL"
        )
        wanted = set(handles)
        return {h: Fact.model_validate_json(body) for h, body in rows if h in wanted}

    def to_forget(self) -> tuple[Fact, ...]:
        """Retracted facts that the target lineage knows: what a rebuild has to forget."""
        handles = [found.handle for found in self.all(unfinished=True) if found.served]
        return tuple(self.facts(handles).values())

    def tainted(self, handles: Sequence[str]) -> Tainted:
        """Everything published that may have learnt or replayed one of these retracted facts."""
        saw = self._knowledge.tainted_adapters(handles)
        names, models = set(), set()
        lineages: dict[int, tuple[str, ...]] = {}
        for number, lineage, name, sha in self._db.rows(
            "SELECT number, lineage, served_name, sha256 FROM revisions"
        ):
            lineages[number] = tuple(json.loads(lineage))
            if saw & set(lineages[number]):
                names.add(name)
                models.add(sha)
        for parent, replaces, adapter, served in self._db.rows(
            "SELECT parent, replaces, adapter, served FROM plans WHERE served IS NOT NULL"
        ):
            kept = set(lineages.get(parent, ())) - set(json.loads(replaces))
            if saw & {*kept, adapter}:
                published = json.loads(served)
                names.add(published["name"])
                models.add(published["sha256"])
        return Tainted(
            adapters=tuple(sorted(saw)),
            served=tuple(sorted(names)),
            models=tuple(sorted(sha for sha in models if sha)),
        )

    # --- asking and following ------------------------------------------------------------------

    def retract(self, fact_id: str, because: str, now: datetime) -> bool:
        """A fact must no longer be known; whether it was until now. Raises `NotFound`."""
        self._facts.state(fact_id)
        with self._db.write("retract"):
            done = self._db.do(
                f"UPDATE facts SET validity = 'retracted', lost_after = {LOST_NOW},"
                " state = CASE state WHEN 'pending' THEN 'idle' ELSE state END"
                " WHERE id = ? AND validity <> 'retracted'",
                (fact_id,),
            )
            self.note((fact_id,), because, now)
        return bool(done)

    def note(self, ids: Sequence[str], because: str, now: datetime) -> None:
        """Begin to follow retracted facts on their way out, each under a handle of its own.

        Those that are followed already stay as they are.
        """
        for fact_id in ids:
            handle, salt = f"r-{secrets.token_hex(8)}", secrets.token_hex(16)
            mark, version = salted(self._mark_salt(), stem_of(fact_id)), version_of(fact_id)
            noted = self._db.do(
                "INSERT INTO retractions (fact, handle, salt, digest, mark, version, because,"
                " asked_at, last_batch) SELECT seq, ?, ?, ?, ?, ?, ?, ?,"
                " (SELECT coalesce(max(seq), 0) FROM batches) FROM facts WHERE id = ?"
                " AND validity = 'retracted' ON CONFLICT (fact) DO NOTHING",
                (
                    *(handle, salt, salted(salt, fact_id), mark, version),
                    *(because, self._db.at(now), fact_id),
                ),
            )
            followed = self._db.one(
                "SELECT count(*) FROM retractions r JOIN facts f ON f.seq = r.fact WHERE f.id = ?",
                (fact_id,),
            )
            self._db.expect(followed, 1, "a retraction is followed")
            if noted:
                said = {"because": because}
                asked = Notification.RETRACTED
                self._db.event(asked.value, f"retraction:{handle}", said, now, told=asked)

    def unloaded(self, handles: Sequence[str], now: datetime) -> None:
        """No replica has any revision loaded that knows these."""
        with self._db.write("unloaded"):
            for handle in handles:
                if self._db.do(
                    "UPDATE retractions SET unloaded_at = ? WHERE handle = ?"
                    " AND unloaded_at IS NULL",
                    (self._db.at(now), handle),
                ):
                    self._db.event("fact.unloaded", f"retraction:{handle}", {}, now)

    def certified(self, handle: str, now: datetime) -> None:
        """The certificate lies where people look for it."""
        with self._db.write("certified"):
            if self._db.do(
                "UPDATE retractions SET certified_at = ? WHERE handle = ? AND certified_at IS NULL",
                (self._db.at(now), handle),
            ):
                done = Notification.CERTIFIED
                self._db.event(done.value, f"retraction:{handle}", {}, now, told=done)

    # --- ids of erased facts -------------------------------------------------------------------

    def _mark_salt(self) -> str:
        """By this salt the ids of erased facts are known again; made at the first retraction."""
        salt = self._db.meta(_MARK_SALT)
        if salt is None:
            salt = secrets.token_hex(16)
            self._db.set_meta(_MARK_SALT, salt)
        return salt

    def erased(self, stems: Sequence[str]) -> Iterator[tuple[str, int, str]]:
        """Stem, place and former id of every erased fact that was a version of one of `stems`."""
        salt = self._db.meta(_MARK_SALT)
        by_mark = {} if salt is None else {salted(salt, stem): stem for stem in stems}
        for chunk in chunks(list(by_mark)):
            for mark, seq, version in self._db.rows(
                "SELECT mark, fact, version FROM retractions WHERE erased_at IS NOT NULL"
                f" AND mark IN ({marks(chunk)})",
                chunk,
            ):
                yield by_mark[mark], seq, version_id(by_mark[mark], version)


def _retraction(row: SqlRow, *, served: bool) -> Retraction:
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
