"""A control group of a test's own, in which the kernel ends whoever wants more memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

GROUP = "PALORAD_TEST_GROUP"  # in the environment of a child that is to starve
GROUPS = Path("/sys/fs/cgroup")
CHUNK = 4 << 20
MOST = 1 << 29


@contextmanager
def limited(size: int) -> Iterator[Path]:
    """A group of at most `size` bytes below the test's own; skips where none can be made."""
    made = (_made(parent, limit, size) for parent, limit in _parents())
    group = next((group for group in made if group is not None), None)
    if group is None:
        pytest.skip("no control group with a limit of memory can be made here")
    try:
        yield group
    finally:
        group.rmdir()


def _made(parent: Path, limit: str, size: int) -> Path | None:
    group = parent / f"palorad-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        return None
    try:
        with (group / limit).open("r+") as file:  # made by the kernel, or this is no such group
            file.write(str(size))
    except OSError:
        group.rmdir()
        return None
    return group


def _parents() -> Iterator[tuple[Path, str]]:
    """The test's own groups in either version, and the file that limits the memory of one."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield GROUPS / "memory" / path.lstrip("/"), "memory.limit_in_bytes"
        elif not controllers:
            yield GROUPS / path.lstrip("/"), "memory.max"


def starve(group: Path) -> None:
    """Enter a group and take memory until the kernel ends this process."""
    (group / "cgroup.procs").write_text(str(os.getpid()))
    taken: list[bytes] = []
    while len(taken) * CHUNK < MOST:
        taken.append(os.urandom(CHUNK))
    raise MemoryError(f"{MOST} bytes were taken and nobody minded")
