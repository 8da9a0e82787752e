"""The power is cut at every sync of a day; what was not synced is lost, or kept in any order."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.support import power

SEED = 1
REORDERED = 3  # of so many moments between two syncs, one is tried


def run() -> dict[str, Any]:
    """How many power cuts were survived, all promises held; raises naming those that were not."""
    with tempfile.TemporaryDirectory(prefix="palorad-power-") as folder:
        recorded = power.record(Path(folder) / "site", SEED)
        lost = [image for image in recorded.images if not image.reordered]
        mixed = [image for image in recorded.images if image.reordered][::REORDERED]
        broken = []
        try:
            for image in (*lost, *mixed):
                try:
                    power.survives(recorded, image)
                except AssertionError as error:
                    broken.append(f"{image.at} ({image.after}, {image.reordered}): {error}")
        finally:
            recorded.site.close()
    if broken:
        raise AssertionError("\n".join(broken))
    return {"power_cuts": len(lost) + len(mixed)}
