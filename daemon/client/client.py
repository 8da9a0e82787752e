"""The typed client; the commands are thin around it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from daemon.base.control import ask as ask_daemon
from daemon.config.settings import Settings
from daemon.intake.receipts import read_receipt
from daemon.ledger.ledger import Ledger
from daemon.views import status as views
from daemon.views.answers import ANSWER_TOKENS, answered_by, answers, answers_of
from daemon.views.explain import Explanation
from policies.errors import (
    DaemonUnreachable,
    NotFound,
    PaloradError,
    RequestRefused,
    ServerRefused,
)
from policies.records import BatchState, Record

LOOK_S: Final = 0.5
UNSETTLED: Final = (BatchState.WAITING, BatchState.LEARNING)


class WaitedTooLong(PaloradError, TimeoutError):
    """A batch had no verdict in the time that was given."""


class Submitted(Record):
    """A file that was handed over, when, and its batch; whether its bytes were known, and where
    that batch stood then. `line` says it to a person."""

    file: str
    batch: str
    at: datetime
    known: bool = False
    state: BatchState | None = None
    line: str = ""


class Answer(Record):
    """What the server answered, and which model did; `revision` where the alias was asked."""

    text: str
    model: str
    revision: int | None = None


class Client:
    """palorad as `settings` describe it.

    Everything blocks. Methods raise `PaloradError`s, each with one clear line: `DaemonUnreachable`
    where the daemon is needed and does not run, `NotFound` for a name that nothing has.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @classmethod
    def load(cls, config: Path | None = None) -> Self:
        """From a config.toml (else $PALORAD_CONFIG, else ./config.toml); raises `ConfigError`."""
        return cls(Settings.load(config))

    # --- through the daemon --------------------------------------------------------------------

    def tell(self, command: str, /, **args: object) -> Any:  # noqa: ANN401 - JSON
        """Have the running daemon carry a command out; what it answers."""
        return ask_daemon(self.settings.layout.control_socket, command, **args)

    def submit(self, *files: Path, again: bool = False) -> tuple[Submitted, ...]:
        """Hand files of facts over; known bytes are learnt once more only if `again`."""
        found = []
        for file in files:
            at = datetime.now(UTC)
            said = self.tell("submit", path=str(file.resolve()), again=again)
            found.append(Submitted(file=str(file), at=at, **said))
        return tuple(found)

    def wait(
        self,
        submitted: Submitted | str,
        *,
        timeout_s: float | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> BatchState:
        """Until what was submitted, or a batch by its id or its file's name, is neither waiting nor
        learning; its state then.

        Raises `RequestRefused` if the file was refused as a whole, `WaitedTooLong` after
        `timeout_s` seconds, `DaemonUnreachable` when the daemon goes.
        """
        until = None if timeout_s is None else clock() + timeout_s
        while True:
            name, state = self._standing(submitted)
            if state not in UNSETTLED:
                return state
            if until is not None and clock() >= until:
                raise WaitedTooLong(f"batch {name} is {state.value} after {timeout_s:g} s")
            self.tell("status")  # raises when the daemon is gone
            sleep(LOOK_S)

    def _standing(self, submitted: Submitted | str) -> tuple[str, BatchState]:
        with self.reading() as ledger:
            if isinstance(submitted, str):
                batch = ledger.batches.get(submitted).id
                return batch, ledger.batches.state(batch)
            # It is taken in a moment after it was handed over.
            if ledger.batches.is_complete(submitted.batch):
                return submitted.batch, ledger.batches.state(submitted.batch)
        receipt = read_receipt(self.settings.layout.inbox / Path(submitted.file).name)
        if receipt is not None and receipt.error and receipt.received_at >= submitted.at:
            raise RequestRefused(f"{submitted.file} {receipt.error}")
        return submitted.batch, BatchState.WAITING

    def daemon(self) -> views.DaemonView | None:
        """What only the running daemon knows; None where none runs."""
        try:
            return views.DaemonView.model_validate(self.tell("status"))
        except DaemonUnreachable:
            return None

    # --- from the ledger -----------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[Ledger]:
        """The ledger, read-only; one clear line where nothing has run yet."""
        path = self.settings.layout.ledger
        if not path.exists():
            raise NotFound(f"there is no ledger at {path} yet; start with 'palorad run'")
        with Ledger.open(path, readonly=True) as ledger:
            yield ledger

    def status(self, now: datetime | None = None) -> views.StatusView:
        """What is served, under way and in the way; `running` says whether a daemon answers."""
        daemon = self.daemon()
        if daemon is None and not self.settings.layout.ledger.exists():
            where = self.settings.state_dir
            raise DaemonUnreachable(f"nothing has run in {where}; start with `palorad run`")
        with self.reading() as ledger:
            return views.status(ledger, daemon, now or datetime.now(UTC))

    def history(self, limit: int = 50) -> views.HistoryView:
        """The latest revisions and events."""
        with self.reading() as ledger:
            return views.history(ledger, limit)

    def explain(self, batch: str) -> Explanation:
        """Why a batch is live, rejected or waiting: its plans with their verdicts."""
        with self.reading() as ledger:
            return views.explain(ledger, batch)

    def certificate(self, name: str) -> views.RetractionView:
        """Where a retraction stands, with its certificate once there is one."""
        with self.reading() as ledger:
            return views.retraction(ledger, ledger.retractions.get(name))

    # --- from the server -----------------------------------------------------------------------

    def ask(
        self, question: str, *, model: str | None = None, max_tokens: int = ANSWER_TOKENS
    ) -> Answer:
        """The greedy answer of the alias, or of another model that the server knows.

        Raises `ServerUnreachable` and `ServerRefused`.
        """
        name = model or self.settings.model.alias
        (answer,) = asyncio.run(answers_of(self.settings, (name,), question, max_tokens))
        if isinstance(answer, ServerRefused):
            raise answer
        revision = answer.headers.get("x-palorad-revision", "")
        return Answer(
            text=answer.text.strip(),
            model=answered_by(answer),
            revision=int(revision) if revision.isdigit() else None,
        )

    def why(self, question: str) -> views.WhyView:
        """The facts that a question is about, and what base, previous and live answer now."""
        with self.reading() as ledger:
            target = ledger.revisions.target()
            previous = None if target.parent is None else ledger.revisions.get(target.parent)
        found = asyncio.run(answers(self.settings, question, previous))
        with self.reading() as ledger:
            return views.why(ledger, question, found)
