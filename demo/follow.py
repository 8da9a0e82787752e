"""Following the daemon from outside: its inbox, its ledger, its control socket, its endpoint."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from rich.status import Status

from daemon.base.control import ask
from daemon.children.jobs import last_progress
from daemon.cli.session import console
from daemon.intake.inbox import receipt_path
from daemon.intake.receipts import Receipt, read_receipt
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Event
from demo.setup import DaemonProcess, DemoFailed
from policies.errors import LedgerBusy
from policies.records import BatchState

if TYPE_CHECKING:
    from daemon.config.settings import Settings

START_S = 300.0
BATCH_S = 900.0
FLIP_S = 60.0
POLL_S = 0.25
EVENTS = 500
UNSETTLED = (BatchState.WAITING, BatchState.LEARNING)


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of one batch: its state, the verdict that decided, and seconds by stage."""

    state: BatchState
    verdict: str | None
    reasons: tuple[str, ...]
    seconds: dict[str, float]


class Follow:
    """One running daemon as a user sees it."""

    def __init__(self, settings: Settings, daemon: DaemonProcess, batch_s: float = BATCH_S) -> None:
        self.settings = settings
        self.layout = settings.layout
        self.daemon = daemon
        self.batch_s = batch_s
        self.dropped = datetime.now(UTC)

    def status(self, text: str) -> AbstractContextManager[Status]:
        """A line that changes while one waits; nothing where the output is no terminal."""
        return console.status(text)

    def _until(self, done: Callable[[], bool], limit_s: float, what: str) -> None:
        end = time.monotonic() + limit_s
        while not done():
            self.daemon.check()
            if time.monotonic() > end:
                raise DemoFailed(f"{what} took longer than {limit_s:.0f} s; see {self.daemon.log}")
            time.sleep(POLL_S)

    def until_serving(self) -> None:
        """Wait until the endpoint answers under the stable name."""
        with self.status("starting the server"):
            self._until(lambda: self.served() is not None, START_S, "starting the server")

    def hand_in(self, file: Path) -> Receipt:
        """Put a file into the inbox as a user would, and wait for its receipt."""
        target = self.layout.inbox / file.name
        beside = target.with_name(f".{file.name}.tmp")
        self.dropped = datetime.now(UTC)
        shutil.copyfile(file, beside)
        beside.replace(target)
        with self.status(f"{file.name}: in the inbox"):
            self._until(
                lambda: read_receipt(target) is not None, self.batch_s, f"reading {file.name}"
            )
        receipt = read_receipt(target)
        if receipt is None:
            raise DemoFailed(f"{file.name}: its receipt is gone again")
        return receipt

    def drop(self, file: Path) -> str:
        """Hand in a file of which something is taken; the batch's id."""
        receipt = self.hand_in(file)
        if not receipt.batch or not receipt.taken:
            beside = receipt_path(self.layout.inbox / file.name, accepted=False)
            raise DemoFailed(
                f"{file.name} was refused: {receipt.error or receipt.state}; see {beside}"
            )
        return receipt.batch

    def until_settled(self, batch: str, name: str) -> Settled:
        """Wait until the batch is live everywhere, or decided otherwise."""
        with self.status(name) as status:

            def settled() -> bool:
                status.update(f"{name}: {self._doing()}")
                return self._settled(batch)

            self._until(settled, self.batch_s, f"learning {name}")
            began = time.monotonic()
            self._until(lambda: self.served() == self.target(), FLIP_S, "serving what is target")
            return self._what_became(batch, time.monotonic() - began)

    def _settled(self, batch: str) -> bool:
        try:
            with Ledger.open(self.layout.ledger, readonly=True) as ledger:
                return (
                    ledger.batches.state(batch) not in UNSETTLED
                    and ledger.plans.open_plan() is None
                    and not ledger.facts.counts(batch).pending
                )
        except LedgerBusy:
            return False

    def _doing(self) -> str:
        """What the running child says of itself."""
        newest = max(self.layout.work.glob("*/progress.jsonl"), key=_changed, default=None)
        progress = last_progress(newest.parent) if newest else None
        if newest is None or progress is None:
            return "planning"
        text = f"{progress.stage or newest.parent.name}"
        if progress.total:
            text += f" {progress.done} of {progress.total}"
        if progress.loss is not None:
            text += f", loss {progress.loss:.3f}"
        if progress.seconds_left is not None:
            text += f", {progress.seconds_left:.0f} s left"
        return text

    def _what_became(self, batch: str, waited: float) -> Settled:
        with Ledger.open(self.layout.ledger, readonly=True) as ledger:
            state = ledger.batches.state(batch)
            verdicts = [
                ledger.steps.verdict(head.id) for head in ledger.plans.heads(batch_id=batch)
            ]
            events = [e for e in ledger.events.latest(EVENTS) if e.at >= self.dropped]
            errors = [head.error for head in ledger.plans.heads(batch_id=batch) if head.error]
        # The first plan of a batch decides on the batch; later ones try again what it missed.
        first = next((v for v in reversed(verdicts) if v is not None), None)
        return Settled(
            state=state,
            verdict=first.outcome.value if first else None,
            reasons=first.reasons if first else tuple(errors),
            seconds=stages(self.dropped, reversed(events)) | {"serve": round(waited, 2)},
        )

    def served(self) -> int | None:
        """The revision that answers under the stable name."""
        url = f"{self.settings.server.urls[0]}/v1/completions"
        body = {"model": self.settings.model.alias, "prompt": "Hello", "max_tokens": 1}
        try:
            reply = httpx.post(url, json=body, timeout=30.0)
        except httpx.HTTPError:
            return None
        number = reply.headers.get("x-palorad-revision")
        return int(number) if number and reply.status_code == httpx.codes.OK else None

    def target(self) -> int:
        """The revision that the ledger wants served."""
        with Ledger.open(self.layout.ledger, readonly=True) as ledger:
            return ledger.revisions.target().number

    def change(self, command: str, to: int) -> None:
        """`palorad rollback` or `forward`, until clients see it."""
        with self.status(f"{command} to revision {to}"):
            self.control(command, to=to, because="the demonstration")
            self.until_revision(to)

    def until_revision(self, number: int) -> None:
        """Wait until clients are answered by this revision."""
        self._until(lambda: self.served() == number, FLIP_S, f"serving revision {number}")

    def control(self, command: str, **args: object) -> Any:  # noqa: ANN401 - JSON
        """What the command line would send to the running daemon."""
        return ask(self.layout.control_socket, command, **args)


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def stages(dropped: datetime, events: Iterable[Event]) -> dict[str, float]:
    """Seconds from the drop to the admission, and of each stage of every plan since, by name."""
    seconds: dict[str, float] = {}
    began: dict[str, tuple[str, datetime]] = {}
    for event in events:
        if event.kind == "batch.admitted":
            seconds["intake"] = (event.at - dropped).total_seconds()
            continue
        if event.subject in began and (event.kind == "stage.started" or "plan." in event.kind):
            step, at = began.pop(event.subject)
            seconds[step] = seconds.get(step, 0.0) + (event.at - at).total_seconds()
        if event.kind == "stage.started":
            began[event.subject] = (str(event.payload["stage"]), event.at)
    return {name: round(value, 2) for name, value in seconds.items()}
