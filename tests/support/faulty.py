"""A disk that fails under a daemon: every kind of request at every kind of path."""

from __future__ import annotations

import errno
import os
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import crash_tour
from tests.support.crash_tour import Tour
from tests.support.disk.disk import Disk, mounted

NUMBERS = (errno.ENOSPC, errno.EIO)
SCENES = ("learn", "submitted", "rolled-back", "requeued", "forgotten")
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
        """Everything that the scenes ask of the disk."""
        self.disk.ask("spare", os.getpid())
        self.tour.play("learn")  # what only a start does is not asked for again
        found: dict[tuple[str, str], list[str]] = {}
        before: dict[tuple[str, str], int] = self.disk.ask("seen")
        for scene in SCENES:
            self.tour.play(scene)
            seen: dict[tuple[str, str], int] = self.disk.ask("seen")
            for (kind, path), count in seen.items():
                if count > before.get((kind, path), 0) and kind in FAILING:
                    scenes = found.setdefault((kind, pattern_of(path)), [])
                    scenes.append(scene)
            before = seen
        return sorted(
            (
                Class(kind, pattern, scenes[0] if len(set(scenes)) > 2 else scenes[-1])
                for (kind, pattern), scenes in found.items()
            ),
            key=lambda one: (SCENES.index(one.scene), one.kind, one.pattern),
        )

    def fails_once(self, one: Class, number: int) -> bool:
        """Play a scene in which it fails once; whether it was asked for. Nothing may come of it.

        Raises `AssertionError` where a promise is broken, or where the daemon dies.
        """
        tour, site = self.tour, self.tour.site
        daemon, site.starts = site.alive(), 1
        self.disk.fail({one.kind}, one.pattern, number, sparing=os.getpid())
        try:
            for _ in range(2):
                tour.play(one.scene)
                if hit := bool(self.disk.ask("hit")):
                    break
        finally:
            self.disk.heal()
        tour.held()
        assert site.alive() is daemon, f"the daemon died:\n{site.log}"
        assert site.starts == 1
        return hit


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
