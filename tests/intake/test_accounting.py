"""Every line of a file is in the ledger once, or in quarantine once, or where its writer put it,
whatever writers do and wherever palorad is killed."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.base import faults
from daemon.intake import admit, following, intake
from daemon.intake.writers import Writers
from tests.intake.test_intake import Place

LATE_S = 100.0
WRITERS = 3


class Killed(BaseException):
    """The process is gone: nothing that it would still have done is done."""


@contextmanager
def untold(_: int) -> Iterator[Writers]:
    yield Writers.UNKNOWN


class Writer:
    """A producer with one file at a time; it looks at nothing that palorad does."""

    def __init__(
        self, number: int, folder: Path, files: Iterator[int], lines: Iterator[int]
    ) -> None:
        self.number, self.folder, self.files, self.lines = number, folder, files, lines
        self.out: BinaryIO | None = None
        self.path = folder
        self.rest = b""
        self.good: list[str] = []
        self.bad: list[str] = []

    def begin(self, hidden: bool) -> None:
        self.close()
        name = f"{self.number}-{next(self.files)}.jsonl"
        self.path = self.folder / (f".{name}.tmp" if hidden else name)
        self.out = self.path.open("ab")

    def write(self, whole: bool, good: bool) -> None:
        """The rest of a line that was begun, then a line, or the first half of one."""
        if self.out is None:
            self.begin(hidden=False)
        assert self.out is not None
        word = f"line {next(self.lines)}"
        if good:
            self.good.append(word)
            line = json.dumps({"prompt": f"What is {word}?", "answer": word}).encode() + b"\n"
        else:
            self.bad.append(word)
            line = word.encode() + b"\n"
        half = len(line) if whole else len(line) // 2
        self.out.write(self.rest + line[:half])
        self.out.flush()
        self.rest = line[half:]

    def reopen(self) -> None:
        """Close the file and open what has its name now, or a new one, to append."""
        if self.out is not None:
            self.out.write(self.rest)
            self.rest = b""
            self.out.close()
            self.out = self.path.open("ab")

    def rename(self) -> None:
        """Move the file, if it is still there, into the inbox or to another name in it."""
        target = self.folder / f"{self.number}-{next(self.files)}.jsonl"
        if self.out is not None and self.path.exists():
            self.path.rename(target)
            self.path = target

    def close(self) -> None:
        if self.out is None:
            return
        self.out.write(self.rest)
        self.rest = b""
        self.out.close()
        if self.path.name.startswith("."):
            self.rename()
        self.out = None


class Dying:
    """Ends the process, as far as a test can, when as many durable steps have passed."""

    def __init__(self) -> None:
        self.left: int | None = None

    def __call__(self, _: str) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise Killed


ACTS = st.one_of(
    st.tuples(st.just("begin"), st.integers(0, WRITERS - 1), st.booleans()),
    st.tuples(st.just("write"), st.integers(0, WRITERS - 1), st.booleans(), st.booleans()),
    st.tuples(st.just("write"), st.integers(0, WRITERS - 1), st.booleans(), st.booleans()),
    st.tuples(st.just("reopen"), st.integers(0, WRITERS - 1)),
    st.tuples(st.just("rename"), st.integers(0, WRITERS - 1)),
    st.tuples(st.just("close"), st.integers(0, WRITERS - 1)),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 3.0, 10.0])),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 3.0, 10.0])),
    st.tuples(st.just("crash"), st.integers(0, 30)),
)


@pytest.mark.parametrize("leases", [True, False], ids=["leases", "no leases"])
@given(acts=st.lists(ACTS, max_size=25))
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_every_line_is_accounted_for_once(
    acts: list[tuple[object, ...]],
    leases: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        dying = Dying()
        patched.setattr(faults, "point", dying)
        patched.setattr(os, "fsync", lambda _: None)
        patched.setattr(admit, "PIECE_LINES", 2)
        if not leases:
            patched.setattr(intake, "kept_out", untold)
            patched.setattr(following, "kept_out", untold)
        place = Place(tmp_path_factory.mktemp("state"), late_lines_s=LATE_S)
        files, lines = iter(range(10**6)), iter(range(10**6))
        writers = [Writer(n, place.layout.inbox, files, lines) for n in range(WRITERS)]
        for act, *arguments in acts:
            if act in ("wait", "crash"):
                live(place, dying, str(act), arguments[0])
            else:
                getattr(writers[int(str(arguments[0]))], str(act))(*arguments[1:])
        for writer in writers:
            writer.close()
        for _ in range(6):
            live(place, dying, "wait", 10.0)
        live(place, dying, "wait", LATE_S)
        good = Counter(fact.answer for fact in place.ledger.facts.find())
        bad = Counter(
            line.text
            for batch in place.ledger.batches.latest()
            for line in place.ledger.quarantine.lines(batch.id)
        )
        assert good == Counter(word for writer in writers for word in writer.good)
        assert bad == Counter(word for writer in writers for word in writer.bad)
        assert place.ledger.batches.totals()["quarantined"] == bad.total()
        left = [p for p in place.layout.inbox.rglob("*") if p.is_file() and p.suffix != ".json"]
        assert all(path.stat().st_size == 0 for path in left), "an empty file is refused"
        place.ledger.close()


def live(place: Place, dying: Dying, act: str, amount: object) -> None:
    """Time passes under palorad; in a "crash" it is killed after so many durable steps."""
    if act == "crash":
        dying.left = int(str(amount))
    seconds = 5.0 if act == "crash" else float(str(amount))
    try:
        place.intake.step(place.now, 60)
        place.now += timedelta(seconds=seconds)
        place.intake.step(place.now, 60)
    except Killed:
        place.ledger.close()
        place.ledger = type(place.ledger).open(place.layout.ledger)
        place.restart()
    dying.left = None
