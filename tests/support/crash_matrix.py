"""Which kills a daemon has to survive, drawn from the points that a tour passes."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from tests.support.crash_tour import Tour, tour_at

COMMON = 4
TOGETHER = 20  # kills that one state directory goes through


def killed_at(tour: Tour, scene: str, *points: str) -> None:
    """Play a scene in which a process is killed at each of these points, once, and go on."""
    site = tour.site
    site.die_at(*points)
    # Some steps need revisions that came before.
    for again in (scene, "learn", "learn", scene):
        tour.play(again)
        if all(map(site.died, points)):
            break
    missed = [point for point in points if not site.died(point)]
    assert not missed, f"{missed} was never passed"
    tour.held()


def _scene(passing: list[str]) -> str:
    """What each learning passes is in most scenes; what only the very first one did, is not."""
    first, *others = passing
    return others[0] if first == "learn" and 0 < len(others) < COMMON else first


@dataclass(frozen=True)
class Matrix:
    """Which kills are to be survived: each point alone, and pairs of which the second comes while
    the first is recovered from. Those at first need a state directory of their own."""

    scenes: dict[str, str]
    at_first: tuple[str, ...]
    later: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, passed: dict[str, list[str]], pairs: int, seed: int) -> Matrix:
        at_first = sorted(point for point, scenes in passed.items() if scenes == ["learn"])
        later = sorted(passed.keys() - set(at_first))
        scenes = {point: _scene(in_) for point, in_ in passed.items()}
        draw = random.Random(seed)
        drawn: list[tuple[str, str]] = []
        while len(drawn) < pairs:
            first, second = draw.sample(later, 2)
            if scenes[first] == scenes[second]:
                drawn.append((first, second))
        return cls(scenes, tuple(at_first), tuple(later), tuple(drawn))

    def sample(self, at_first: int, later: int, pairs: int, seed: int) -> Matrix:
        """A few of them, at random."""
        draw = random.Random(seed)
        return Matrix(
            self.scenes,
            tuple(draw.sample(self.at_first, min(at_first, len(self.at_first)))),
            tuple(draw.sample(self.later, min(later, len(self.later)))),
            self.pairs[:pairs],
        )

    def survive(self, root: Path) -> None:
        """Do it; raises `AssertionError` that names all that break a promise."""
        broken = []
        for number, point in enumerate(self.at_first):
            with tour_at(root / f"first-{number}") as tour:
                broken += _broken_by(tour, "learn", point)
        left: list[tuple[str, ...]] = [*((point,) for point in self.later), *self.pairs]
        while left:
            with tour_at(root / f"later-{len(left)}") as tour:
                tour.play("learn")
                for _ in range(min(TOGETHER, len(left))):
                    points = left.pop(0)
                    if found := _broken_by(tour, self.scenes[points[0]], *points):
                        broken += found
                        break
        assert not broken, "\n".join(broken)


def _broken_by(tour: Tour, scene: str, *points: str) -> list[str]:
    try:
        killed_at(tour, scene, *points)
    except AssertionError as error:
        return [f"{' and '.join(points)}: {error}"]
    return []
