"""Where everything happens: a site, and the promises after every step of its life."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import note
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant

from policies.errors import PaloradError
from tests.support.life.promises import Promises
from tests.support.life.site import Killed, Site
from tests.support.life.writers import Line, Writers

STEPS = {"taken": 0}


def killer(power: bool) -> Callable[[], None]:
    """What ends the process, or cuts the power, where it is called."""

    def act() -> None:
        raise Killed(power)

    return act


class Stage(RuleBasedStateMachine):
    """A site, its writers and its promises; what others have happen on it comes in subclasses."""

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

    # --- what subclasses use -------------------------------------------------------------------

    def _lines(self, kinds: list[str], pick: int) -> list[Line]:
        return [self._line(kind, pick + number) for number, kind in enumerate(kinds)]

    def _line(self, kind: str, pick: int) -> Line:
        known = [line for line in self.writers.lines.values() if line.fact]
        old = known[pick % len(known)] if known else None
        if old is not None and kind == "again" and not old.gone:
            return self.writers.again(old)
        if old is not None and kind == "supersedes":
            return self.writers.fact(prompt=old.prompt)
        if old is not None and kind == "retracts":
            return self.writers.retraction(old)
        if kind == "bad":
            return self.writers.bad()
        if kind == "expiring":
            return self.writers.expiring(30.0 + pick * 60)
        return self.writers.fact(**({"priority": "urgent"} if kind == "urgent" else {}))

    def _crash(self, power: bool, linger: bool = False) -> None:
        self.site.crash(power, linger)
        self._after(power)

    def _dies_in_a_tick(self, when: int, power: bool, seconds: float) -> None:
        """Killed, or cut off, right before one of the durable calls of a tick."""
        deaths = self.site.deaths
        self.site.at_call = when, killer(power)
        self.site.tick(seconds)
        self._after(power and self.site.deaths > deaths)

    def _after(self, power: bool) -> None:
        if power:
            self.writers.power_cut()

    def _ask(self, command: str, **arguments: Any) -> Any:
        try:
            return self.site.command(command, **arguments)
        except PaloradError as error:
            note(f"{command}: {error}")
            return None

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
