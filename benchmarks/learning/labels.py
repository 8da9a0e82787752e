"""Where labels stand beside their points, so that none covers another label or a point."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, TypeAlias

Box: TypeAlias = tuple[float, float, float, float]
Point: TypeAlias = tuple[float, float]

# Directions from a point to the nearest edge or corner of its label.
DIRECTIONS: Final = (
    (1.0, 0.0),
    (-1.0, 0.0),
    (0.0, 1.0),
    (0.0, -1.0),
    (0.7, 0.7),
    (0.7, -0.7),
    (-0.7, 0.7),
    (-0.7, -0.7),
)
REACHES: Final = (1.2, 2.0, 3.2, 4.6, 6.2)
ORDERS: Final = 60
CROSSED: Final = 50.0


def arrange(
    sizes: Sequence[Point], marks: Sequence[Point], radius: float, bounds: Box
) -> list[Box]:
    """A box in pixels for each label of `sizes` (width, height), as near to its mark as can be.

    Labels are placed one after the other in several orders, of which the one with the nearest
    labels and the fewest crossed ones is taken. A mark takes `radius` on every side. Raises
    ValueError where the labels find no room within `bounds`.
    """
    rng = random.Random(0)
    taken = [(x - radius, y - radius, x + radius, y + radius) for x, y in marks]
    best: tuple[float, list[Box]] | None = None
    for _ in range(ORDERS):
        order = rng.sample(range(len(sizes)), len(sizes))
        placed, cost = _in_turn(order, sizes, marks, taken, radius, bounds)
        if placed is not None and (best is None or cost < best[0]):
            best = cost, placed
    if best is None:
        raise ValueError(f"{len(sizes)} labels find no room in {bounds}: make the picture larger")
    return best[1]


def nearest(box: Box, mark: Point) -> Point:
    """The point of a box that is nearest to a mark."""
    return min(max(mark[0], box[0]), box[2]), min(max(mark[1], box[1]), box[3])


def _in_turn(
    order: Sequence[int],
    sizes: Sequence[Point],
    marks: Sequence[Point],
    taken: Sequence[Box],
    radius: float,
    bounds: Box,
) -> tuple[list[Box] | None, float]:
    placed: dict[int, Box] = {}
    cost = 0.0
    for n in order:
        others = [box for m, box in enumerate(taken) if m != n and box != taken[n]]
        others += placed.values()
        found = [
            (reach + 0.1 * turn + CROSSED * _crossed(marks[n], box, others), box)
            for reach in REACHES
            for turn, box in enumerate(_around(marks[n], sizes[n], reach * radius))
            if _within(box, bounds)
            and not any(overlap(box, other) for other in (*taken, *placed.values()))
        ]
        if not found:
            return None, cost
        price, placed[n] = min(found)
        cost += price
    return [placed[n] for n in range(len(sizes))], cost


def _around(mark: Point, size: Point, reach: float) -> list[Box]:
    found = []
    for right, up in DIRECTIONS:
        x = mark[0] + right * reach + size[0] * (0.0 if right > 0 else -1.0 if right < 0 else -0.5)
        y = mark[1] + up * reach + size[1] * (0.0 if up > 0 else -1.0 if up < 0 else -0.5)
        found.append((x, y, x + size[0], y + size[1]))
    return found


def overlap(one: Box, two: Box) -> bool:
    """Whether two boxes have a point in common."""
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


def _within(box: Box, bounds: Box) -> bool:
    low = box[0] >= bounds[0] and box[1] >= bounds[1]
    return low and box[2] <= bounds[2] and box[3] <= bounds[3]


def _crossed(mark: Point, box: Box, others: Sequence[Box]) -> int:
    """How many boxes the line from a mark to its label passes through."""
    end = nearest(box, mark)
    between = [
        (mark[0] + (end[0] - mark[0]) * n / 10, mark[1] + (end[1] - mark[1]) * n / 10)
        for n in range(1, 10)
    ]
    return sum(any(b[0] < x < b[2] and b[1] < y < b[3] for x, y in between) for b in others)
