"""Files change while the daemon works: what differs is looked at again before it is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from daemon.ledger.ledger import Ledger

TRIES: Final = 3
PAUSE_S: Final = 0.2


class Confirmed:
    """Asks a question about files and ledger; what is wrong must still be so a moment later."""

    def __init__(self, ledger: Ledger, path: Path, *, running: bool) -> None:
        """`ledger` as it was at one moment; `running`: a daemon works on the one at `path`."""
        self.ledger = ledger
        self._path = path
        self._tries = TRIES if running else 0

    def __call__(self, problem: Callable[[Ledger], str]) -> str:
        """What is wrong, "" where nothing is."""
        found = problem(self.ledger)
        for _ in range(self._tries):
            if not found:
                break
            time.sleep(PAUSE_S)
            with Ledger.open(self._path, readonly=True) as ledger:
                found = problem(ledger)
        return found
