"""Events of the inbox as a hint; the scan finds everything without them, only later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import structlog
from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver
from watchdog.observers.polling import PollingObserver

log = structlog.get_logger(__name__)


class _Hint(FileSystemEventHandler):
    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self._loop = asyncio.get_running_loop()

    def on_any_event(self, _event: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._look)


def observe(
    folder: Path, watch: Literal["events", "polling", "off"], look: Callable[[], None]
) -> BaseObserver | None:
    """Call `look` in the running loop at each event in `folder`; None where nobody observes it."""
    if watch == "off":
        return None
    observer: BaseObserver = PollingObserver() if watch == "polling" else Observer()
    observer.schedule(_Hint(look), str(folder))
    try:
        observer.start()
    except OSError as error:
        log.warning("no events from the inbox; it is scanned", reason=str(error))
        return None
    return observer
