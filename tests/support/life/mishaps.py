"""What goes wrong by itself: processes, power, disks, clocks and replicas."""

from __future__ import annotations

import errno
import os
from datetime import timedelta

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from policies.gate.records import Outcome
from tests.support.life.children import Broken, Told
from tests.support.life.stage import Stage, killer

WHEN = st.integers(0, 40)
PASSES = st.sampled_from(
    (Outcome.PASS, Outcome.PASS, Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE)
)


class Mishaps(Stage):
    """Time, and what it brings."""

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
        self.site.finish(Told(fault=Broken(kind, final=final and kind == "Broken")))
        self.site.tick(1.0)

    @precondition(lambda self: self.site.world.running())
    @rule()
    def child_is_killed(self) -> None:
        self.site.world.running()[0].kill()
        self.site.tick(1.0)

    @precondition(lambda self: self.site.world.running())
    @rule(when=WHEN, power=st.booleans())
    def child_dies_at(self, when: int, power: bool) -> None:
        self.site.at_call = when, killer(power)
        self.site.finish(Told())
        self._after(power)

    # --- deaths --------------------------------------------------------------------------------

    @rule(linger=st.booleans())
    def crash(self, linger: bool) -> None:
        self._crash(power=False, linger=linger)

    @rule(linger=st.booleans())
    def crash_while_a_child_works(self, linger: bool) -> None:
        """Killed while a child works, which may outlive the daemon for a while."""
        for _ in range(6):
            self.site.tick(3.0)
            if self.site.world.running():
                break
        self._crash(power=False, linger=linger)
        self.site.tick(3.0)

    @rule()
    def cut_the_power(self) -> None:
        self._crash(power=True)

    @rule(when=WHEN, power=st.booleans(), learns=st.booleans(), seconds=st.sampled_from([0.5, 3.0]))
    def die_at(self, when: int, power: bool, learns: bool, seconds: float) -> None:
        """Killed, or cut off, right before one of the durable calls of a tick."""
        if learns:
            self.site.tick(1.0)
            self.site.finish(Told())
        self._dies_in_a_tick(when, power, seconds)

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
            self.site.at_call = when, killer(False)
        self.site.prune()

    # --- replicas ------------------------------------------------------------------------------

    @rule(which=st.integers(0, 1))
    def replica_dies(self, which: int) -> None:
        self.site.engines[which].kill()

    @rule(which=st.integers(0, 1))
    def replica_comes_back(self, which: int) -> None:
        self.site.engines[which].kill()
        self.site.engines[which].start()

    @rule(which=st.integers(0, 1), cut_off=st.booleans())
    def replica_is_cut_off(self, which: int, cut_off: bool) -> None:
        """The network to it breaks, or is mended."""
        self.site.engines[which].cut_off = cut_off

    @rule(which=st.integers(0, 1))
    def replica_loads_something_else(self, which: int) -> None:
        """The next adapter that it loads is not what lies on the disk."""
        self.site.engines[which].garbles = True
