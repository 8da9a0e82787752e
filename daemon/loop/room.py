"""Whether the disk has room for anything new."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from daemon.loop.boundary import Boundary

LOW_DISK_BYTES: Final = 64 * 2**20


class DiskRoom:
    """Looks at the free bytes of the state directory, and tells trouble where they are too few."""

    def __init__(self, state_dir: Path, free_bytes: Callable[[], int], boundary: Boundary) -> None:
        self._state_dir = state_dir
        self._free_bytes = free_bytes
        self._boundary = boundary

    def is_there(self) -> bool:
        """Without room nothing is taken in or begun."""
        free = self._free_bytes()
        if free >= LOW_DISK_BYTES:
            self._boundary.clear("disk")
            return True
        self._boundary.report(
            "disk",
            f"{self._state_dir}: only {free // 2**20} MB are free; intake and learning "
            "pause until there is room",
        )
        return False
