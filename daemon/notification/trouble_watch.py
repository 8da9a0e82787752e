"""Tells trouble that lasts: its begin, reminders, and its end."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from daemon.config.notify import NotifySettings
from daemon.ledger.ledger import Ledger

# Not those in a name or an address: two replicas are two troubles.
_NUMBER: Final = re.compile(r"(?<![\w.:/-])\d+(?:\.\d+)?(?![\w:/-])")


def key_of(line: str) -> str:
    """What tells one trouble from another: its line without the numbers, which count on."""
    return hashlib.sha256(_NUMBER.sub("#", line).encode()).hexdigest()[:16]


class TroubleWatch:
    """Looks at the lines of trouble; what comes and goes at once is not told."""

    def __init__(
        self,
        ledger: Ledger,
        settings: NotifySettings,
        *,
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        """`now` dates what is told, `clock` in seconds times it. What was told before this start
        is known from the ledger."""
        self._ledger = ledger
        self._settings = settings
        self._now = now
        self._clock = clock
        self._lines: dict[str, str] = {}
        self._since: dict[str, float] = {}
        self._gone: dict[str, float] = {}
        self._told = dict.fromkeys(ledger.troubles.open(), clock())

    def look(self, lines: Sequence[str]) -> None:
        """These are the lines of trouble now."""
        seconds = self._clock()
        present = {key_of(line): line for line in lines}
        self._since = {key: self._since.get(key, seconds) for key in present}
        for key, line in present.items():
            self._gone.pop(key, None)
            self._present(key, line, seconds)
        for key in self._told.keys() - present.keys():
            if seconds - self._gone.setdefault(key, seconds) >= self._settings.trouble_after_s:
                self._ledger.troubles.ended(key, self._lines.pop(key, ""), self._now())
                del self._told[key], self._gone[key]

    def _present(self, key: str, line: str, seconds: float) -> None:
        troubles, remind_s = self._ledger.troubles, self._settings.remind_s
        if key not in self._told:
            if seconds - self._since[key] < self._settings.trouble_after_s:
                return
            troubles.began(key, line, self._now())
        elif remind_s and seconds - self._told[key] >= remind_s:
            troubles.lasts(key, line, self._now())
        else:
            self._lines[key] = line
            return
        self._told[key], self._lines[key] = seconds, line
