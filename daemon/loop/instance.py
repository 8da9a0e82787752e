"""One daemon a state directory: a lock that the kernel gives back when the process is gone."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from daemon.config.layout import Layout
from policies.errors import AlreadyRunning

log = structlog.get_logger(__name__)


@contextmanager
def alone(layout: Layout) -> Iterator[None]:
    """Be the only daemon of this state directory and this inbox; raises `AlreadyRunning`."""
    with single_instance(layout.lock), sole_reader(layout.inbox):
        yield


@contextmanager
def single_instance(lock: Path) -> Iterator[None]:
    """Hold `lock` with this process's pid in it; raises `AlreadyRunning` naming who holds it."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"{lock.parent}: another palorad ({_holder(descriptor)}) runs on this state "
                "directory; stop it first or set another state_dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def sole_reader(inbox: Path) -> Iterator[None]:
    """Be the only daemon that takes files from an inbox; raises `AlreadyRunning`.

    Where the file system knows no locks nobody is refused.
    """
    descriptor = os.open(inbox, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"{inbox}: another palorad takes files from this inbox; stop it first or set "
                "another intake.inbox"
            ) from None
        except OSError as error:
            log.warning("the inbox cannot be locked", inbox=str(inbox), reason=str(error))
        yield
    finally:
        os.close(descriptor)


def holder(lock: Path) -> int | None:
    """The pid of the daemon that holds `lock`; None where none runs."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        return int(text) if text.isdigit() else None
    else:
        return None
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
    return f"pid {text}" if text.isdigit() else "pid unknown"
