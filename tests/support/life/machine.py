"""Whatever happens in whatever order: rules for a site, and the promises after every one of them."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from policies.errors import PaloradError, RequestRefused
from policies.gate.records import Outcome
from policies.records import PlanState
from policies.retention import StoredKind
from tests.support.life.children import Told
from tests.support.life.promises import Promises
from tests.support.life.site import Killed, Site, broken
from tests.support.life.writers import Line, Writers

KINDS = st.lists(
    st.sampled_from(
        ("fact", "fact", "fact", "bad", "expiring", "again", "supersedes", "retracts", "urgent")
    ),
    min_size=1,
    max_size=5,
)
WHEN = st.integers(0, 40)
PASSES = st.sampled_from(
    (Outcome.PASS, Outcome.PASS, Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE)
)
STEPS = {"taken": 0}


class Life(RuleBasedStateMachine):
    """Drops, paused writers, ticks, deaths, power cuts, clocks, people, replicas, tampering."""

    @initialize()
    def begin(self) -> None:
        home = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.root = Path(tempfile.mkdtemp(prefix="palorad-life-", dir=home))
        self.healthy = False
        self.site = Site(self.root)
        self.writers = Writers(self.site)
        self.promises = Promises(self.site, self.writers)
        self.healthy = True

    def teardown(self) -> None:
        if not hasattr(self, "site"):
            shutil.rmtree(getattr(self, "root", "/nonexistent"), ignore_errors=True)
            return
        try:
            if self.healthy and sys.exc_info()[0] is None:
                self.healthy = False
                self.come_to_rest()
        finally:
            for writing in self.writers.open:
                writing.stream.close()
            self.site.close()
            shutil.rmtree(self.root, ignore_errors=True)

    def come_to_rest(self) -> None:
        """Everybody lets go, and what was promised must be there."""
        for writing in list(self.writers.open):
            self.writers.finish(writing)
        self.site.command("resume")
        self.site.settle()
        self.promises.at_rest()

    # --- drops ---------------------------------------------------------------------------------

    def _lines(self, kinds: list[str], pick: int) -> list[Line]:
        return [self._line(kind, pick + number) for number, kind in enumerate(kinds)]

    def _line(self, kind: str, pick: int) -> Line:
        known = [line for line in self.writers.lines.values() if line.fact]
        old = known[pick % len(known)] if known else None
        if kind == "bad":
            return self.writers.bad()
        if kind == "expiring":
            return self.writers.expiring(30.0 + pick * 60)
        if kind == "urgent":
            return self.writers.fact(priority="urgent")
        if old is not None and kind == "again" and not old.gone:
            return self.writers.again(old)
        if old is not None and kind == "supersedes":
            return self.writers.fact(prompt=old.prompt)
        if old is not None and kind == "retracts":
            return self.writers.retraction(old)
        return self.writers.fact()

    @rule(kinds=KINDS, pick=st.integers(0, 30))
    def drop(self, kinds: list[str], pick: int) -> None:
        self.writers.drop(self._lines(kinds, pick))

    @rule(kinds=KINDS, pick=st.integers(0, 30))
    def drop_carelessly(self, kinds: list[str], pick: int) -> None:
        self.writers.careless(self._lines(kinds, pick))

    @precondition(lambda self: self.writers.dropped)
    @rule(pick=st.integers(0, 30))
    def drop_again(self, pick: int) -> None:
        self.writers.drop_again(pick)

    @precondition(lambda self: self.writers.dropped)
    @rule(kinds=KINDS, pick=st.integers(0, 30), when=WHEN)
    def drop_over_what_is_taken(self, kinds: list[str], pick: int, when: int) -> None:
        """While the daemon takes a file another one is renamed over it."""
        path, _ = self.writers.dropped[-1]
        lines = self._lines(kinds, pick)
        done: list[bool] = []

        def act() -> None:
            done.append(True)
            self.writers.drop(lines, path)

        self.site.at_call = when, act
        self.site.tick(3.0)
        if not done:
            self.site.at_call = None
            act()

    @rule(kinds=KINDS, pick=st.integers(0, 30))
    def begin_writing(self, kinds: list[str], pick: int) -> None:
        if len(self.writers.open) < 2:
            self.writers.begin(self._lines(kinds, pick))

    @precondition(lambda self: self.writers.open)
    @rule(kinds=KINDS, pick=st.integers(0, 30), pause=st.sampled_from([0.0, 0.5, 3.0, 30.0]))
    def go_on_writing(self, kinds: list[str], pick: int, pause: float) -> None:
        """A writer pauses, in which the daemon works, and goes on."""
        writing = self.writers.open[pick % len(self.writers.open)]
        if pause:
            self.site.tick(pause)
            self.site.tick(pause)
        if writing in self.writers.open:
            self.writers.go_on(writing, self._lines(kinds, pick))

    @precondition(lambda self: self.writers.open)
    @rule(pick=st.integers(0, 1))
    def finish_writing(self, pick: int) -> None:
        self.writers.finish(self.writers.open[pick % len(self.writers.open)])

    @rule(kinds=KINDS, pick=st.integers(0, 30), dies=st.booleans())
    def submit(self, kinds: list[str], pick: int, dies: bool) -> None:
        lines = self._lines(kinds, pick)
        path = self.writers.submitted(lines)
        answer = self._ask("submit", path=str(path))
        if answer is None:
            for line in lines:
                self.writers.lines.pop(line.token, None)
            return
        for line in lines:
            line.safe = True
        if dies:
            self._crash(power=True)

    # --- the daemon and its children -----------------------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 3.0, 30.0]), times=st.integers(1, 4))
    def tick(self, seconds: float, times: int) -> None:
        for _ in range(times):
            self.site.tick(seconds)

    @rule(outcome=PASSES, misses=st.booleans(), ticks=st.integers(1, 12))
    def learn(self, outcome: Outcome, misses: bool, ticks: int) -> None:
        """Time passes, and whatever child runs reports."""
        for _ in range(ticks):
            self.site.tick(3.0)
            self.site.finish(Told(outcome, misses))

    @precondition(lambda self: self.site.world.running())
    @rule(kind=st.sampled_from(["Broken", "NoFreeSpace"]), final=st.booleans())
    def child_fails(self, kind: str, final: bool) -> None:
        self.site.finish(Told(fault=broken(kind, final=final and kind == "Broken")))
        self.site.tick(1.0)

    @precondition(lambda self: self.site.world.running())
    @rule()
    def child_is_killed(self) -> None:
        self.site.world.running()[0].kill()
        self.site.tick(1.0)

    @precondition(lambda self: self.site.world.running())
    @rule(when=WHEN, power=st.booleans())
    def child_dies_at(self, when: int, power: bool) -> None:
        self.site.at_call = when, _killer(power)
        self.site.finish(Told())
        self._after(power)

    # --- deaths --------------------------------------------------------------------------------

    @rule(linger=st.booleans())
    def crash(self, linger: bool) -> None:
        self._crash(power=False, linger=linger)

    @rule()
    def cut_the_power(self) -> None:
        self._crash(power=True)

    @rule(when=WHEN, power=st.booleans(), learns=st.booleans(), seconds=st.sampled_from([0.5, 3.0]))
    def die_at(self, when: int, power: bool, learns: bool, seconds: float) -> None:
        """Killed, or cut off, right before one of the durable calls of a tick."""
        if learns:
            self.site.tick(1.0)
            self.site.finish(Told())
        deaths = self.site.deaths
        self.site.at_call = when, _killer(power)
        self.site.tick(seconds)
        self._after(power and self.site.deaths > deaths)

    @rule(
        when=WHEN,
        code=st.sampled_from([errno.ENOSPC, errno.EIO]),
        seconds=st.sampled_from([0.5, 3.0, 30.0]),
    )
    def disk_fails(self, when: int, code: int, seconds: float) -> None:
        """One durable call of a tick fails."""

        def act() -> None:
            raise OSError(code, os.strerror(code))

        self.site.at_call = when, act
        self.site.tick(seconds)

    @rule(full=st.booleans())
    def disk_fills(self, full: bool) -> None:
        self.site.full = full

    def _crash(self, power: bool, linger: bool = False) -> None:
        self.site.crash(power, linger)
        self._after(power)

    def _after(self, power: bool) -> None:
        if power:
            self.writers.power_cut()

    # --- clocks --------------------------------------------------------------------------------

    @rule(by=st.sampled_from([-86400, -3600, -1, 60, 86400, 31_536_000]))
    def set_the_clock(self, by: int) -> None:
        wrong = self.site.wrong_by + timedelta(seconds=by)
        if abs(wrong) < timedelta(days=800):
            self.site.wrong_by = wrong

    @rule(when=WHEN, dies=st.booleans())
    def prune(self, when: int, dies: bool) -> None:
        """What need not be kept is removed, or half of it."""
        if dies:
            self.site.at_call = when, _killer(False)
        self.site.prune()

    # --- people --------------------------------------------------------------------------------

    def _ask(self, command: str, **arguments: Any) -> Any:
        try:
            return self.site.command(command, **arguments)
        except PaloradError as error:
            note(f"{command}: {error}")
            return None

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
        try:
            self.site.command("rollback", to=to, because="a test")
        except RequestRefused:
            chosen = ledger.revisions.get(to)
            removed = ledger.removals.has(StoredKind.REVISION, chosen.served_name)
            assert removed or ledger.knowledge.forbidden_count(chosen.lineage)
        else:
            assert ledger.revisions.target().number == to

    @rule()
    def forward(self) -> None:
        self._ask("forward", because="a test")

    @rule(pick=st.integers(0, 30), when=st.integers(0, 12), seconds=st.sampled_from([0.5, 3.0]))
    def rollback_meanwhile(self, pick: int, when: int, seconds: float) -> None:
        """A rollback is acknowledged while the daemon waits for a replica."""

        async def act() -> None:
            to = self._revision(pick)
            with suppress(RequestRefused):
                table = self.site._service._commands.table()
                await table["rollback"](to=to, because="meanwhile")

        self._meanwhile(when, act, seconds)

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

    # --- replicas ------------------------------------------------------------------------------

    @rule(which=st.integers(0, 1))
    def replica_dies(self, which: int) -> None:
        self.site.engines[which].kill()

    @rule(which=st.integers(0, 1))
    def replica_comes_back(self, which: int) -> None:
        self.site.engines[which].kill()
        self.site.engines[which].start()

    @rule(which=st.integers(0, 1))
    def replica_loads_something_else(self, which: int) -> None:
        """The next adapter that it loads is not what lies on the disk."""
        self.site.engines[which].garbles = True

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
        self.site.do(self.site._service.check)
        found = self.site.trouble
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
            self.site.do(self.site._service.check)
            seen = self.site.trouble
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
        self.site.do(self.site._service.check)
        stored = [line for line in self.site.trouble if "event" in line or "published" in line]
        assert not stored, stored

    # --- what must hold ------------------------------------------------------------------------

    @invariant()
    def keeps_its_promises(self) -> None:
        if not getattr(self, "healthy", False):
            return
        STEPS["taken"] += 1
        self.healthy = False
        self.promises.check()
        unexpected = [
            line for line in self.site.trouble if "unexpected" in line and "[Errno" not in line
        ]
        assert not unexpected, unexpected
        assert len(self.site.world.running()) <= 2
        self.healthy = True


def _killer(power: bool) -> Callable[[], None]:
    def act() -> None:
        raise Killed(power)

    return act
