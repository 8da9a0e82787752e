"""What the page's routes work with: the ledger to read, the daemon to ask, the settings."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, cast

from daemon.base.control import Handler
from daemon.config.settings import Settings
from daemon.intake.admit import Rules
from daemon.ledger.ledger import Ledger
from daemon.views.capacity import DiskUse, stored_in
from daemon.views.status import DaemonView
from daemon.web.gathering import Gathering
from daemon.web.operators import Operators
from policies.errors import DaemonUnreachable, LedgerUnusable

FRESH_S: Final = 1.0
STALE_S: Final = 10.0
ANSWER_S: Final = 30.0
LIVE_S: Final = 3.0
SIZES_S: Final = 60.0


class Live:
    """What only the running daemon knows, as its loop said last.

    The loop is asked again behind the reader's back once that is a second old, so that no page
    waits for a loop that is at work.
    """

    def __init__(self, ask: Callable[[], Future[Any]], clock: Callable[[], float]) -> None:
        self._ask = ask
        self._clock = clock
        self._lock = threading.Lock()
        self._asked: Future[Any] | None = None
        self._view: DaemonView | None = None
        self._at = float("-inf")

    def now(self) -> DaemonView | None:
        """The view, at most ten seconds old where the loop answers; None where it does not."""
        age = self._clock() - self._at
        if age <= FRESH_S:
            return self._view
        asked = self._refresh()
        if age > STALE_S:
            try:
                self._keep(asked.result(LIVE_S))
            except (TimeoutError, RuntimeError):
                return None
        return self._view

    def forget(self) -> None:
        """Something has changed: whoever looks next waits for a fresh view."""
        self._at = float("-inf")

    def _refresh(self) -> Future[Any]:
        with self._lock:
            if self._asked is None or self._asked.done():
                self._asked = self._ask()
                self._asked.add_done_callback(self._answered)
            return self._asked

    def _answered(self, asked: Future[Any]) -> None:
        if not asked.cancelled() and asked.exception() is None:
            self._keep(asked.result())

    def _keep(self, said: object) -> None:
        self._view = DaemonView.model_validate(said)
        self._at = self._clock()


@dataclass
class Desk:
    """One for each running page."""

    settings: Settings
    commands: Mapping[str, Handler]
    loop: asyncio.AbstractEventLoop
    rules: Rules
    operators: Operators
    wall: Callable[[], datetime] = lambda: datetime.now(UTC)
    live: Live = field(init=False)
    sizes: Gathering[tuple[DiskUse, ...]] = field(init=False)
    remembered: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    _own: threading.local = field(default_factory=threading.local)

    def __post_init__(self) -> None:
        self.live = Live(lambda: self._submit("status", {}), time.monotonic)
        self.sizes = Gathering(lambda _: stored_in(self.settings.layout), SIZES_S, "disk use")

    @contextmanager
    def reading(self) -> Iterator[Ledger]:
        """The ledger, read-only, by this thread's own connection; raises the ledger's errors.

        It stays open for the thread's next request, with what it remembers of plans.
        """
        ledger: Ledger | None = getattr(self._own, "ledger", None)
        if ledger is None:
            ledger = self._own.ledger = Ledger.open(self.settings.layout.ledger, readonly=True)
        try:
            yield ledger
        except LedgerUnusable:
            del self._own.ledger
            ledger.close()
            raise

    def do(self, command: str, **args: object) -> dict[str, Any]:
        """One of the control socket's commands, carried out by the daemon's loop; its answer.

        Raises the command's `PaloradError`, or `DaemonUnreachable` where the loop does not answer.
        """
        asked = self._submit(command, args)
        try:
            return cast("dict[str, Any]", asked.result(ANSWER_S))
        except TimeoutError:
            asked.cancel()  # else it would be done while it is asked for once more
            raise DaemonUnreachable(
                f"the daemon has not answered {command} in {ANSWER_S:.0f} s; look again in a moment"
            ) from None
        finally:
            self.live.forget()

    def _submit(self, command: str, args: Mapping[str, object]) -> Future[Any]:
        work = cast("Coroutine[Any, Any, Any]", self.commands[command](**args))
        return asyncio.run_coroutine_threadsafe(work, self.loop)
