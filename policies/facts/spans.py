"""Sets of line numbers as short text: spans ("5-90,95"), or a bitmap where that is shorter."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from typing import Final

_BITMAP: Final = "~"


def spans(numbers: Iterable[int]) -> str:
    """Numbers (from 0) as text; "" where there are none.

    At most a fifth of a character for each number up to the largest, and some more.
    """
    ascending = sorted(set(numbers))
    found: list[list[int]] = []
    for number in ascending:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    text = ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in found)
    if len(text) <= (ascending[-1] if ascending else 0) // 6 + 4:
        return text
    bits = bytearray(ascending[-1] // 8 + 1 if ascending else 0)
    for number in ascending:
        bits[number // 8] |= 1 << number % 8
    bitmap = _BITMAP + base64.b64encode(bits).decode()
    return bitmap if len(bitmap) < len(text) else text


def numbers_in(text: str) -> Iterator[int]:
    """The numbers of such a text, ascending."""
    if text.startswith(_BITMAP):
        for place, byte in enumerate(base64.b64decode(text[1:])):
            yield from (8 * place + bit for bit in range(8) if byte >> bit & 1)
        return
    for span in text.split(",") if text else ():
        first, _, last = span.partition("-")
        yield from range(int(first), int(last or first) + 1)
