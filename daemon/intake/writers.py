"""Whether somebody still has a file open for writing, as far as the kernel tells."""

from __future__ import annotations

import fcntl
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum


class Writers(StrEnum):
    """Who has a file open for writing: nobody, somebody, or the kernel does not tell."""

    NONE = "none"
    OPEN = "open"
    UNKNOWN = "unknown"


@contextmanager
def kept_out(descriptor: int) -> Iterator[Writers]:
    """Who writes to a file opened for reading; with `NONE` nobody begins before the block is left.

    A read lease is granted only while nobody has the file open for writing (`F_SETLEASE` in
    fcntl(2)). It takes the file's owner or CAP_LEASE, and a local file system.
    """
    try:
        # The default, SIGIO, would end the process when somebody opens the file meanwhile.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        yield Writers.OPEN
        return
    except OSError:
        yield Writers.UNKNOWN
        return
    try:
        yield Writers.NONE
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
