"""The power is cut at every sync of a day, with what was not synced lost or kept in any order."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.support import power

SEEDS = (1,)


def run() -> dict[str, Any]:
    """How many power cuts were survived, all promises held; raises for a broken one."""
    cuts = 0
    for seed in SEEDS:
        with tempfile.TemporaryDirectory(prefix="palorad-power-") as folder:
            recorded = power.record(Path(folder) / "site", seed)
            try:
                for image in recorded.images:
                    power.survives(recorded, image)
            finally:
                recorded.site.close()
            cuts += len(recorded.images)
    return {"power_cuts": cuts}
