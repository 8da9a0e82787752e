"""Named durable steps, so that a test can kill the process before and after each of them."""

from __future__ import annotations

import os
import signal
from typing import Final

VARIABLE: Final = "PALORAD_DIE_AT"


def point(name: str) -> None:
    """Die here by SIGKILL if `PALORAD_DIE_AT` names this step; otherwise nothing."""
    if os.environ.get(VARIABLE) == name:
        os.kill(os.getpid(), signal.SIGKILL)
