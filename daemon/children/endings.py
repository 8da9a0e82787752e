"""Why a child ended without a word: a signal, a bug, want of memory, or want of room."""

from __future__ import annotations

import errno
import signal
from pathlib import Path
from typing import Final

EXIT_NO_ROOM: Final = 73
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
# Libraries that write by themselves tell it in words only.
_WORDS: Final = ("No space left on device", "Disk quota exceeded")
_VMSTAT: Final = Path("/proc/vmstat")


def no_room(error: BaseException | None) -> bool:
    """Whether an error comes from a full disk, however it was raised on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return True
        if any(words in str(error) for words in _WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def oom_kills(vmstat: Path = _VMSTAT) -> int:
    """How many processes the kernel has ended for want of memory since boot; 0 if it won't say."""
    try:
        lines = vmstat.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def how_it_ended(code: int, oom_kills_meanwhile: int) -> str:
    """What an exit status says, in words that go on a sentence about the child."""
    if code >= 0:
        return f"ended with status {code}"
    how = f"was ended by {signal.Signals(-code).name}"
    if -code != signal.SIGKILL:
        return how
    if oom_kills_meanwhile > 0:
        return (
            f"{how} when the kernel ran out of memory: give the machine, the unit or the "
            "container more, or stop what else needs it"
        )
    return f"{how}, by somebody or by the kernel for want of memory ('journalctl -k' tells)"
