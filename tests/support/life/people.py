"""What people ask for, also while the daemon waits for a replica; and what strangers edit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from policies.errors import PaloradError, RequestRefused
from policies.records import PlanState
from policies.retention import StoredKind
from tests.support.life.children import Told
from tests.support.life.stage import Stage


class People(Stage):
    """Commands, and edits behind the daemon's back."""

    def _revision(self, pick: int) -> int:
        numbers = [revision.number for revision in self.site.ledger.revisions.all()]
        return numbers[pick % len(numbers)]

    @rule(pick=st.integers(0, 30), serves=st.booleans())
    def rollback(self, pick: int, serves: bool) -> None:
        self._rollback(pick)
        if serves:
            self.site.serve()

    def _rollback(self, pick: int) -> None:
        to = self._revision(pick)
        ledger = self.site.ledger
        before = ledger.revisions.target()
        try:
            self.site.command("rollback", to=to, because="a test")
        except RequestRefused:
            chosen = ledger.revisions.get(to)
            removed = ledger.removals.has(StoredKind.REVISION, chosen.served_name)
            assert removed or ledger.knowledge.forbidden_count(chosen.lineage)
        else:
            target = ledger.revisions.target()
            assert target.number == to
            known = ledger.knowledge.forbidden_count(target.lineage)
            assert not known or target.lineage == before.lineage, f"{to} was revoked"

    @rule()
    def forward(self) -> None:
        self._ask("forward", because="a test")

    @rule(pick=st.integers(0, 30), when=st.integers(0, 12), seconds=st.sampled_from([0.5, 3.0]))
    def rollback_meanwhile(self, pick: int, when: int, seconds: float) -> None:
        """A rollback is acknowledged while the daemon waits for a replica."""
        self._meanwhile(when, self._rolls_back(pick), seconds)

    @rule(pick=st.integers(0, 30), when=st.integers(0, 24))
    def rollback_during_a_promotion(self, pick: int, when: int) -> None:
        """A rollback is acknowledged while replicas prepare for a revision that passed."""
        before = self.site.ledger.revisions.target().number
        for _ in range(8):
            self.site.tick(3.0, serves=False)
            self.site.finish(Told())
            if self.site.ledger.revisions.target().number != before:
                break
        self.site.at_request = when, self._rolls_back(pick)
        self.site.serve()
        self.site.at_request = None

    @rule(pick=st.integers(0, 30))
    def rollback_right_before_a_promotion(self, pick: int) -> None:
        """A rollback is acknowledged between the decision to promote and the promotion."""
        for _ in range(8):
            judged = any(child.step == "evaluate" for child in self.site.world.running())
            self.site.finish(Told())
            if judged:
                self.site.tick_beside(3.0, self._rolls_back(pick))
                return
            self.site.tick(3.0, serves=False)

    def _rolls_back(self, pick: int) -> Callable[[], Coroutine[Any, Any, None]]:
        async def act() -> None:
            to = self._revision(pick)
            with suppress(RequestRefused):
                table = self.site._service._commands.table()
                await table["rollback"](to=to, because="meanwhile")

        return act

    @rule(pick=st.integers(0, 30), when=st.integers(0, 12))
    def retract_meanwhile(self, pick: int, when: int) -> None:
        async def act() -> None:
            found = self._fact(pick)
            if found is not None:
                with suppress(PaloradError):
                    table = self.site._service._commands.table()
                    await table["retract"](fact=found, because="meanwhile")

        self._meanwhile(when, act, 3.0)

    @rule(which=st.integers(0, 1), when=st.integers(0, 12), comes_back=st.booleans())
    def replica_dies_meanwhile(self, which: int, when: int, comes_back: bool) -> None:
        engine = self.site.engines[which]

        async def act() -> None:
            engine.kill()
            if comes_back:
                engine.start()

        self._meanwhile(when, act, 3.0)

    def _meanwhile(self, when: int, act: Callable[[], Awaitable[None]], seconds: float) -> None:
        self.site.tick(seconds)
        self.site.finish(Told())
        self.site.at_request = when, act
        self.site.tick(seconds)
        self.site.at_request = when, act
        self.site.tick(seconds)
        self.site.at_request = None

    def _fact(self, pick: int) -> str | None:
        """A fact to retract; whoever asks the same from now on is not to be found either."""
        rows = self.site.ledger.db.rows(
            "SELECT id, body FROM facts WHERE op <> 'retract' AND validity <> 'retracted'"
        )
        if not rows:
            return None
        chosen, body = rows[pick % len(rows)]
        for line in self.writers.lines.values():
            if f'"{line.token}"' in body:
                line.gone = True
        return str(chosen)

    @rule(pick=st.integers(0, 30))
    def retract(self, pick: int) -> None:
        found = self._fact(pick)
        if found is not None:
            self._ask("retract", fact=found, because="a test")

    @rule(pick=st.integers(0, 30))
    def retry(self, pick: int) -> None:
        batches = self.site.ledger.batches.latest()
        if batches:
            self._ask("retry", subject=batches[pick % len(batches)].id)

    @rule(passes=st.booleans())
    def decide(self, passes: bool) -> None:
        for head in self.site.ledger.plans.heads({PlanState.INCONCLUSIVE}, limit=1):
            if passes:
                self.promises.decided.add(head.id)
            self._ask("promote" if passes else "reject", plan=head.id, because="a test")

    @rule(on=st.booleans())
    def pause(self, on: bool) -> None:
        self._ask("pause" if on else "resume")

    @rule()
    def consolidate(self) -> None:
        self._ask("consolidate")

    # --- tampering -----------------------------------------------------------------------------

    @rule(pick=st.integers(0, 400), how=st.sampled_from(["payload", "drop", "at"]))
    def edit_history(self, pick: int, how: str) -> None:
        """An event is edited or taken out: the check says so, and is content once it is back."""
        db = self.site.ledger.db
        rows = db.rows("SELECT * FROM events ORDER BY seq")
        if len(rows) < 2:
            return
        row = rows[pick % (len(rows) - 1)]
        guards = db.rows("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        with db.write("tamper"):
            for name, _ in guards:
                db.do(f"DROP TRIGGER {name}")
            if how == "drop":
                db.do("DELETE FROM events WHERE seq = ?", (row[0],))
            elif how == "at":
                db.do("UPDATE events SET at = '2001-01-01' WHERE seq = ?", (row[0],))
            else:
                db.do("UPDATE events SET payload = '{\"x\": 1}' WHERE seq = ?", (row[0],))
        found = self.site.verified()
        with db.write("tamper"):
            db.do("DELETE FROM events WHERE seq = ?", (row[0],))
            db.do(f"INSERT INTO events VALUES ({','.join('?' * len(row))})", row)
            for _, guard in guards:
                db.do(guard)
        assert any("event" in line for line in found), f"{how} of event {row[0]} was not noticed"
        self._content()

    @rule(pick=st.integers(0, 30), of=st.sampled_from(["served", "adapters"]))
    def edit_what_was_published(self, pick: int, of: str) -> None:
        """A published file is edited: the check says so, and no restarted server loads it."""
        folder = getattr(self.site.layout, of)
        found = sorted(p for p in folder.glob("*/adapter_config.json") if p.parent.name[0] != ".")
        if not found:
            return
        path = found[pick % len(found)]
        before = path.read_bytes()
        path.write_bytes(before + b" ")
        try:
            seen = self.site.verified()
            for engine in self.site.engines:
                engine.kill()
                engine.start()
            for _ in range(3):
                self.site.tick(3.0)
            self.promises.live()
        finally:
            if path.exists():
                path.write_bytes(before)
        for engine in self.site.engines:
            engine.kill()
            engine.start()
        assert any(path.parent.name in line for line in seen), f"{path} was edited unnoticed"
        self._content()

    def _content(self) -> None:
        found = self.site.verified()
        assert found == (), found
