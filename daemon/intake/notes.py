"""What is in the way of a file or batch: told in the status, and in a receipt where it stays."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog

from daemon.intake.receipts import QuarantinedLine, Receipt, read_receipt, write_receipt
from daemon.intake.set_aside import SetAside, problem_of

SET_ASIDE: Final = "set aside"
_FOLDER: Final = ""  # the inbox itself among what is set aside: no file has this name

log = structlog.get_logger(__name__)


class Notes:
    """Notes by name; each is for one signature, so what has changed is looked at again."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._clock = clock
        self._set_aside = SetAside()
        self._refused: dict[str, str] = {}

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for every file or batch that could not be taken yet."""
        return self._set_aside.problems

    def waits(self, name: str, signature: str) -> bool:
        """Whether it is not to be looked at: refused as it is, or to be tried again later."""
        if self._refused.get(name) == signature:
            return True
        return self._set_aside.waits(name, signature, self._clock())

    def failed(self, name: str, signature: str, error: Exception, shown: str = "") -> str:
        """It failed, and is tried again after a pause; what is told of it, as `shown`."""
        problem = problem_of(shown or name, error)
        self._set_aside.add(name, signature, problem, self._clock())
        return problem

    def unreadable(self, error: OSError) -> None:
        """The inbox itself cannot be looked into."""
        problem = f"{self._folder}: cannot be read: {error.strerror or error}"
        self._set_aside.add(_FOLDER, "", problem, self._clock())

    def well(self, name: str, signature: str) -> None:
        """It has been taken."""
        self._set_aside.remove(name, signature)

    def keep(self, here: Collection[str], begun: Collection[str]) -> None:
        """A note goes with its file, unless the file is a batch that is not yet whole."""
        self._set_aside.keep({*here, *begun})
        self._refused = {name: seen for name, seen in self._refused.items() if name in here}

    def refuse(
        self,
        name: str,
        signature: str,
        why: str,
        now: datetime,
        listed: tuple[QuarantinedLine, ...] = (),
    ) -> Iterator[Receipt]:
        """What cannot be read as a whole stays where it is, with one receipt until it changes.

        Raises `OSError` where the receipt cannot be written.
        """
        yield from self._report(name, signature, "refused", f"{name} {why}", now, listed)
        self._refused[name] = signature

    def report(self, name: str, signature: str, problem: str, now: datetime) -> Iterator[Receipt]:
        """A receipt for a file that is set aside, if one can be written."""
        try:
            yield from self._report(name, signature, SET_ASIDE, problem, now)
        except OSError as failure:
            self.failed(name, signature, failure)

    def _report(
        self,
        name: str,
        signature: str,
        state: str,
        error: str,
        now: datetime,
        listed: tuple[QuarantinedLine, ...] = (),
    ) -> Iterator[Receipt]:
        """One receipt for each error of a file."""
        path = self._folder / name
        before = read_receipt(path)
        if before is not None and (before.error, before.signature) == (error, signature):
            return
        if state == SET_ASIDE and before is not None and before.error is None:
            return  # of a later file of that name
        receipt = Receipt(
            file=name,
            received_at=now,
            state=state,
            error=error,
            bad_lines=listed,
            signature=signature,
        )
        write_receipt(path, receipt)
        log.warning("intake.not_taken", file=name, state=state, why=error)
        yield receipt
