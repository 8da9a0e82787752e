"""How long to wait after failures: each further one doubles the pause, up to a limit."""

from __future__ import annotations

from typing import Final

LONGEST_PAUSE_S: Final = 3600.0


def pause_s(failures: int, first_s: float, longest_s: float = LONGEST_PAUSE_S) -> float:
    """Seconds to wait after the `failures`-th failure in a row; 0 where nothing has failed."""
    if failures <= 0:
        return 0.0
    return min(first_s * 2.0 ** min(failures - 1, 30), longest_s)
