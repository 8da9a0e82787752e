"""Sets of line numbers as short text: "5-90,95"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def spans(numbers: Iterable[int]) -> str:
    """Numbers as ascending spans; "" where there are none."""
    found: list[list[int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in found)


def numbers_in(text: str) -> Iterator[int]:
    """The numbers of spans, ascending."""
    for span in text.split(",") if text else ():
        first, _, last = span.partition("-")
        yield from range(int(first), int(last or first) + 1)
