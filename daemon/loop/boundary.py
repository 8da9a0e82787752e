"""The step boundary: nothing that goes wrong in one step ends the daemon; the status tells it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from policies.errors import LedgerBusy, PaloradError

log = structlog.get_logger(__name__)


class Boundary:
    """Runs steps and remembers for each what is wrong with it, in one line."""

    def __init__(self) -> None:
        self._trouble: dict[str, str] = {}

    @property
    def trouble(self) -> tuple[str, ...]:
        """One line for each step that failed when it was run last."""
        return tuple(self._trouble.values())

    async def run(self, what: str, step: Callable[[], Awaitable[None]]) -> None:
        """Run one step; what it raises is shown until it succeeds, and logged when it is new."""
        try:
            await step()
        except LedgerBusy as error:
            log.info("ledger busy", what=what, reason=str(error))
        except PaloradError as error:
            self.report(what, str(error))
        except OSError as error:
            # The disk, a right, the network: what it says is all there is to know.
            where = f"{error.filename}: " if error.filename else ""
            why = error.strerror or str(error) or type(error).__name__
            self.report(what, f"{what}: {where}{why}; it is tried again")
        except Exception as error:
            line = f"{what}: unexpected {type(error).__name__}: {error}; see the log"
            if self._trouble.get(what) != line:
                log.exception("unexpected", what=what)
            self.report(what, line)
        else:
            self.clear(what)

    def report(self, what: str, line: str) -> None:
        """Something is wrong; it is logged when it is new."""
        if self._trouble.get(what) != line:
            log.warning("trouble", what=what, line=line)
        self._trouble[what] = line

    def clear(self, what: str) -> None:
        """It is well again."""
        self._trouble.pop(what, None)
