"""Figures that take longer than a request may: gathered beside it, by a thread of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import structlog

from policies.errors import PaloradError

T = TypeVar("T")
PATIENCE_S: Final = 0.01
# What is gathered in less time is gathered whenever somebody asks; else at most this share.
CHEAP_S: Final = 0.02
SHARE: Final = 0.05

log = structlog.get_logger(__name__)


class Gathering(Generic[T]):
    """What was gathered last, and a thread that gathers it again every `every_s` seconds.

    `gather` is given what there is and returns what there is from then on. Whoever asks waits for
    a fresh answer for a moment only. What could not be gathered is not told: better none than an
    old one.
    """

    def __init__(self, gather: Callable[[T | None], T], every_s: float, name: str) -> None:
        self._gather = gather
        self._every_s = every_s
        self._name = name
        self._changed = threading.Condition()
        self._found: T | None = None
        self._asked = False
        self._ending = False

    def begin(self) -> None:
        """Gather from now on, until `end`."""
        threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def end(self) -> None:
        """Gather no more."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    @property
    def known(self) -> T | None:
        """What was gathered last, without having it gathered anew."""
        return self._found

    def latest(self, patience_s: float = PATIENCE_S) -> T | None:
        """What is known, gathered anew where that takes but a moment; None where nothing is."""
        with self._changed:
            self._asked = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._asked, patience_s)
            return self._found

    def _run(self) -> None:
        rests_until = 0.0
        while not self._ending:
            began = time.monotonic()
            if began >= rests_until:
                found = self._gathered()
                took = time.monotonic() - began
                rests_until = began + took / SHARE if took > CHEAP_S else 0.0
                with self._changed:
                    self._found = found
            with self._changed:
                self._asked = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._asked or self._ending, self._every_s)

    def _gathered(self) -> T | None:
        try:
            return self._gather(self._found)
        except PaloradError as error:
            log.warning("figures", name=self._name, reason=str(error))
        except Exception:  # the thread goes on: else nothing would be told for ever
            log.exception("unexpected", what=self._name)
        return None
