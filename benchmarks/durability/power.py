"""The power is cut at every sync of a day, and again in recovery from some of these cuts.

What was not synced is lost, or kept in any order.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

from tests.support import power
from tests.support.disk.model import Image

SEED = 1
REORDERED = 3  # of so many moments between two syncs, one is tried
TWICE, AGAIN = 20, 3  # so many of the cuts are recovered from once more, and cut so often


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
                    broken.append(f"{_named(image)}: {error}")
            pairs = 0
            for first in random.Random(SEED).sample(recorded.images, TWICE):
                for second in power.cut_again(recorded, first, AGAIN, SEED):
                    pairs += 1
                    try:
                        power.survives(recorded, second)
                    except AssertionError as error:
                        broken.append(f"{_named(first)}, then {_named(second)}: {error}")
        finally:
            recorded.site.close()
    if broken:
        raise AssertionError("\n".join(broken))
    return {"power_cuts": len(lost) + len(mixed), "power_cuts_in_recovery": pairs}


def _named(image: Image) -> str:
    return f"{image.at} ({image.after}, {image.reordered})"
