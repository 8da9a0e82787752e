"""What writers do: carefully, carelessly, slowly, twice, and over one another."""

from __future__ import annotations

import threading

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.support.life.stage import Stage

KINDS = st.lists(
    st.sampled_from(
        ("fact", "fact", "fact", "bad", "expiring", "again", "supersedes", "retracts", "urgent")
    ),
    min_size=1,
    max_size=5,
)
WHEN = st.integers(0, 40)


class Drops(Stage):
    """Files that come."""

    @rule(kinds=KINDS, pick=st.integers(0, 30))
    def drop(self, kinds: list[str], pick: int) -> None:
        self.writers.drop(self._lines(kinds, pick))

    @rule(kinds=KINDS, pick=st.integers(0, 30))
    def drop_carelessly(self, kinds: list[str], pick: int) -> None:
        self.writers.careless(self._lines(kinds, pick))

    @rule(kinds=KINDS, pick=st.integers(0, 30), when=WHEN, power=st.booleans())
    def die_over_a_file(self, kinds: list[str], pick: int, when: int, power: bool) -> None:
        """Killed, or cut off, while a file is taken."""
        self.writers.drop(self._lines(kinds, pick))
        self.site.tick(3.0)
        self._dies_in_a_tick(when, power, 3.0)

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
            if threading.current_thread() is not threading.main_thread():
                return  # the ledger is asked for what is overwritten
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
