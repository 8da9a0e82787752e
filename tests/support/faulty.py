"""A disk that fails under a daemon: every kind of request at every kind of path."""

from __future__ import annotations

import errno
import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import crash_tour
from tests.support.crash_tour import Tour
from tests.support.disk.disk import Disk, mounted

NUMBERS = (errno.ENOSPC, errno.EIO)
SCENES = ("learn", "submitted", "refused", "rolled-back", "requeued", "forgotten")
ROUNDS = 2
QUIET_S = 0.3
PATIENCE_S = 5.0
FAILING = ("write", "fsync", "rename", "create", "mkdir", "unlink", "rmdir", "truncate")


@dataclass(frozen=True)
class Class:
    """One kind of request at one kind of path, and a scene in which it is made."""

    kind: str
    pattern: str
    scene: str


@dataclass
class Bench:
    """A tour on a disk that can be made to fail."""

    tour: Tour
    disk: Disk

    def classes(self) -> list[Class]:
        """Everything that a scene asks of the disk each time that it is played."""
        self.disk.ask("spare", os.getpid())
        self.tour.play("learn")
        self._quiet()  # what only a start does is not asked for again
        rounds = [self._asked() for _ in range(ROUNDS)]
        always = set.intersection(*rounds)
        return sorted(
            {
                (kind, pattern): Class(kind, pattern, _first(always, kind, pattern))
                for kind, pattern, _ in always
            }.values(),
            key=lambda one: (SCENES.index(one.scene), one.kind, one.pattern),
        )

    def _asked(self) -> set[tuple[str, str, str]]:
        """Kind, pattern and scene of every request while each scene is played once."""
        found, before = set(), self.disk.ask("seen")
        for scene in SCENES:
            self.tour.play(scene)
            seen = self._quiet()
            found |= {
                (kind, pattern_of(path), scene)
                for (kind, path), count in seen.items()
                if count > before.get((kind, path), 0) and kind in FAILING
            }
            before = seen
        return found

    def _quiet(self) -> dict[tuple[str, str], int]:
        """What has been asked for, once a daemon at rest has done what it does afterwards."""
        seen: dict[tuple[str, str], int] = self.disk.ask("seen")
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            time.sleep(QUIET_S)
            before, seen = seen, self.disk.ask("seen")
            if seen == before:
                break
        return seen

    def fails_once(self, one: Class, number: int) -> None:
        """Play a scene in which it fails once, and see that nothing comes of it.

        Raises `AssertionError` where a promise is broken, where the daemon dies, or where it was
        not asked for.
        """
        tour, site = self.tour, self.tour.site
        daemon, site.starts = site.alive(), 1
        self.disk.fail({one.kind}, one.pattern, number, sparing=os.getpid())
        try:
            tour.play(one.scene)
            struck = self.disk.ask("hit")
            if not struck:
                self._quiet()
                struck = self.disk.ask("hit")
        finally:
            self.disk.heal()
        assert struck, f"{one.scene} did not ask for {one.kind} at {one.pattern}"
        tour.rest()
        tour.held()
        assert site.alive() is daemon, f"the daemon died:\n{site.log}"
        assert site.starts == 1


def _first(always: set[tuple[str, str, str]], kind: str, pattern: str) -> str:
    """The first scene that makes a request each time."""
    return next(scene for scene in SCENES if (kind, pattern, scene) in always)


def pattern_of(path: str) -> str:
    """The kind of a path: its numbers and hashes may be others."""
    parts = re.split(r"([0-9a-f]{8,}|[0-9]+)", path)
    return "".join(
        (r"[0-9a-f]+" if len(part) >= 8 else r"[0-9]+") if number % 2 else re.escape(part)
        for number, part in enumerate(parts)
    )


@contextmanager
def bench_at(root: Path) -> Iterator[Bench]:
    """A daemon at `root` whose state directory is a disk of its own."""
    with (
        mounted(root / "s") as disk,
        crash_tour.quick_retries(),
        crash_tour.tour_at(root) as tour,
    ):
        yield Bench(tour, disk)


def drawn(classes: list[Class], count: int, seed: int) -> list[tuple[Class, int]]:
    """A few of all the classes with each of the error numbers."""
    every = [(one, number) for one in classes for number in NUMBERS]
    return random.Random(seed).sample(every, min(count, len(every)))
