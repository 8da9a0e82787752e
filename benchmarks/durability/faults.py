"""Each kind of request at each kind of path fails once: no room, or an error of the disk."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any

from tests.support import faulty

TOGETHER = 30  # faults that one state directory goes through


def run() -> dict[str, Any]:
    """How many faults were survived, all promises held; raises naming those that were not."""
    with tempfile.TemporaryDirectory(prefix="palorad-faults-") as folder:
        with faulty.bench_at(Path(folder) / "census") as bench:
            classes = bench.classes()
        every = [(one, number) for one in classes for number in faulty.NUMBERS]
        left, broken = every[:], []
        while left:
            with faulty.bench_at(Path(folder) / f"{len(left)}") as bench:
                bench.tour.play("learn")
                for _ in range(min(TOGETHER, len(left))):
                    one, number = left.pop(0)
                    try:
                        bench.fails_once(one, number)
                    except AssertionError as error:
                        broken.append(f"{one}, {errno.errorcode[number]}: {error}")
                        break
    if broken:
        raise AssertionError("\n".join(broken))
    return {"faults": len(every)}
