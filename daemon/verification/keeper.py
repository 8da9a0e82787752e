"""Signs the history as it grows, and sends the signed head to where nobody here can change it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

import httpx

from adapters import files
from daemon.base import faults
from daemon.config.layout import Layout
from daemon.config.verification import AnchorSettings
from daemon.ledger.database import stamp
from daemon.ledger.ledger import Ledger
from daemon.verification import anchor
from daemon.verification.anchor import AnchorBroken, Head
from policies.errors import PaloradError

OUTSIDE_EVERY_S: Final = 60.0
WEBHOOK_S: Final = 10.0
ACCEPT: Final = (
    "restore a backup; or, if you know why, `palorad verify --accept --because …` signs it as it is"
)


class HistoryChanged(PaloradError):
    """The ledger's history is not the one that was signed."""


class NotSigned(PaloradError):
    """What history has grown by could not be signed for the moment."""


class NotSent(PaloradError):
    """A signed head did not get out."""


class Keeper:
    """Holds the signed head. It is never moved on from a history that differs from it."""

    def __init__(
        self,
        ledger: Ledger,
        layout: Layout,
        settings: AnchorSettings,
        clock: Callable[[], float],
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`clock` in seconds, set by nobody; `transport` is httpx's, for the webhook."""
        self._ledger = ledger
        self._layout = layout
        self._settings = settings
        self._clock = clock
        self._transport = transport
        self._head: Head | None = None
        self._appended: Head | None = None
        self._posted: Head | None = None
        self._not_before = clock()

    def begin(self, now: datetime) -> None:
        """Before the first event of a new ledger: make the key and sign the empty history."""
        seq, chain = self._ledger.events.head()
        if seq == 0 and not self._layout.anchor.exists():
            key = anchor.make_key(self._layout)
            anchor.write(self._layout, anchor.signed(key, Head(seq=0, hash=chain, at=stamp(now))))

    def sign(self, now: datetime) -> None:
        """Sign what has been added; raises `HistoryChanged`, `AnchorBroken`, `NotSigned`."""
        try:
            head = self._head = self._head or anchor.read(self._layout)
            if problem := differs(self._ledger, head):
                raise HistoryChanged(f"{self._layout.ledger}: {problem}; {ACCEPT}")
            if self._ledger.events.head()[0] > head.seq:
                self._put(anchor.read_key(self._layout), now, "")
        except AnchorBroken as error:
            raise AnchorBroken(f"{error}; {ACCEPT}") from None
        except OSError as error:
            where, why = error.filename or self._layout.anchor, error.strerror or error
            raise NotSigned(
                f"{where}: {why}: the history is not signed for the moment; it is tried again"
            ) from None

    def accept(self, because: str, now: datetime) -> int:
        """A person accepts the history as it is: it is signed from here on; how many events."""
        try:
            key = anchor.read_key(self._layout)
        except AnchorBroken:
            key = anchor.make_key(self._layout)
        self._ledger.events.record("history.accepted", "ledger", {"because": because}, now)
        self._put(key, now, because)
        self._not_before = self._clock()
        return self._ledger.events.head()[0]

    def _put(self, key: bytes, now: datetime, accepted: str) -> None:
        seq, chain = self._ledger.events.head()
        head = anchor.signed(key, Head(seq=seq, hash=chain, at=stamp(now), accepted=accepted))
        faults.point("anchor:before")
        anchor.write(self._layout, head)
        faults.point("anchor:signed")
        self._head = head

    # --- outside -------------------------------------------------------------------------------

    async def send(self, *, at_once: bool = False) -> None:
        """Send the signed head outside if it is new, at most once in `OUTSIDE_EVERY_S` seconds.

        Raises `NotSent`.
        """
        head, settings = self._head, self._settings
        due = at_once or self._clock() >= self._not_before
        if head is None or head == self._posted or not due:
            return
        self._not_before = self._clock() + OUTSIDE_EVERY_S
        if settings.file is not None and head != self._appended:
            try:
                await asyncio.to_thread(self._append, settings.file, head)
            except OSError as error:
                raise NotSent(
                    f"anchor.file {settings.file}: {error.strerror}; the signed head was not "
                    "appended; correct its rights or the path"
                ) from None
            self._appended = head
        if settings.webhook:
            await self._post(settings.webhook, head)
        self._posted = head

    def _append(self, path: Path, head: Head) -> None:
        new = not path.exists()
        with path.open("a+b") as stream:
            whole = stream.tell() == 0 or _ends_line(stream.fileno(), stream.tell())
            stream.write(b"" if whole else b"\n")
            stream.write(anchor.line_of(head).encode())
            files.sync_stream(stream)
        if new:
            files.sync(path.parent)

    async def _post(self, url: str, head: Head) -> None:
        try:
            async with httpx.AsyncClient(
                timeout=WEBHOOK_S, trust_env=False, transport=self._transport
            ) as client:
                answer = await client.post(url, json=head.model_dump())
        except httpx.HTTPError as error:
            raise NotSent(f"anchor.webhook {url}: {error or type(error).__name__}") from None
        if not answer.is_success:
            raise NotSent(f"anchor.webhook {url}: answers {answer.status_code}; it is tried again")


def _ends_line(descriptor: int, size: int) -> bool:
    return os.pread(descriptor, 1, size - 1) == b"\n"


def differs(ledger: Ledger, head: Head) -> str:
    """How the ledger's history differs from a head that was signed; "" where it does not."""
    found = ledger.events.hash_of(head.seq)
    if found is None:
        last = ledger.events.head()[0]
        return f"the history was cut off behind event {last}: event {head.seq} had been signed"
    if found != head.hash:
        return f"the history was rewritten: event {head.seq} is not the one that was signed"
    return ""
