"""Numbers as addresses and forms give them: those that the ledger can hold."""

from __future__ import annotations

import re
from typing import Annotated, Final

from fastapi import Path, Query

from policies.errors import RequestRefused

_LARGEST: Final = 10**18 - 1
_DIGITS: Final = re.compile(r"[0-9]{1,18}\Z")

Number = Annotated[int, Path(ge=0, le=_LARGEST)]
Before = Annotated[int | None, Query(ge=1, le=_LARGEST)]


def number_in(text: str) -> int:
    """The number that a text is; raises `RequestRefused`."""
    if not _DIGITS.match(text):
        raise RequestRefused(f"{text[:40]!r} is no number of a plan or a revision")
    return int(text)
