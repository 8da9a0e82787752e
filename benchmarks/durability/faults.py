"""Each kind of request at each kind of path fails once: no room, or an error of the disk."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.support import faulty

TOGETHER = 30  # faults that one state directory goes through


def run() -> dict[str, Any]:
    """How many faults struck, all promises held; raises for a broken one."""
    with tempfile.TemporaryDirectory(prefix="palorad-faults-") as folder:
        with faulty.bench_at(Path(folder) / "census") as bench:
            classes = bench.classes()
        every = [(one, number) for one in classes for number in faulty.NUMBERS]
        struck = 0
        for start in range(0, len(every), TOGETHER):
            with faulty.bench_at(Path(folder) / f"{start}") as bench:
                bench.tour.play("learn")
                for one, number in every[start : start + TOGETHER]:
                    struck += bench.fails_once(one, number)
    return {"faults": struck}
