"""Events of the inbox as a hint; the scan finds everything without them, only later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import structlog
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver
from watchdog.observers.polling import PollingObserver

# What looking itself causes would have it look again, for ever.
_LOOKED_AT: Final = frozenset({"opened", "closed_no_write"})

log = structlog.get_logger(__name__)


class _Hint(FileSystemEventHandler):
    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self._loop = asyncio.get_running_loop()

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type not in _LOOKED_AT and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._look)


class Watching:
    """Calls `look` in the running loop at each event in `folder`, whatever becomes of it.

    Events may be lost (the kernel's queue overflows, the folder is replaced): whoever looks at a
    steady pace, too, misses nothing.
    """

    def __init__(
        self, folder: Path, watch: Literal["events", "polling", "off"], look: Callable[[], None]
    ) -> None:
        self._folder = folder
        self._watch = watch
        self._look = look
        self._observer: BaseObserver | None = None
        self._watched: tuple[int, int] | None = None

    def ensure(self) -> None:
        """Watch the folder that is there now; to be called now and then."""
        if self._watch == "off":
            return
        there = self._identity()
        if self._alive() and there == self._watched:
            return
        self.stop()
        if there is None:
            self._watched = None
            return
        observer: BaseObserver = PollingObserver() if self._watch == "polling" else Observer()
        try:
            observer.schedule(_Hint(self._look), str(self._folder))
            observer.start()
        except OSError as error:
            if self._watched != there:
                log.warning("no events from the inbox; it is scanned", reason=str(error))
            self._watched = there
            return
        self._observer, self._watched = observer, there
        self._look()

    def stop(self) -> None:
        """End the watch."""
        if self._observer is not None:
            self._observer.stop()
            self._observer = None

    def _alive(self) -> bool:
        observer = self._observer
        return (
            observer is not None
            and observer.is_alive()
            # One ends with its folder; another folder may have the same number.
            and all(emitter.is_alive() for emitter in observer.emitters)
        )

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = self._folder.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino
