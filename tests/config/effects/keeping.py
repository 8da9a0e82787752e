"""What is kept: which files a night removes."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from pathlib import Path

from daemon.config.settings import Settings
from daemon.keeping.pruning import Pruner
from policies.records import PlanState
from tests.config.effects import Effect
from tests.config.effects.running import run
from tests.keeping.test_pruning import Place
from tests.support.world import START


def pruned(settings: Settings, root: Path) -> object:
    """What is left of a state directory whose files are ten days old."""
    place = Place(root / "place", revisions=4)
    place.learn(9, PlanState.REJECTED)
    for path in place.layout.root.rglob("*"):
        os.utime(path, (START.timestamp(), START.timestamp()))
    pruner = Pruner(place.ledger, place.layout, settings.keep, set)
    asyncio.run(pruner.prune(START + timedelta(days=10)))
    place.ledger.close()
    return sorted(str(path.relative_to(root)) for path in place.layout.root.rglob("file")) + sorted(
        path.name
        for folder in ("archive", "inbox")
        for path in (place.layout.root / folder).iterdir()
    )


GIVEN = {"keep.revisions": 2}
EFFECTS: dict[str, Effect] = {
    "keep.revisions": Effect(pruned, 3, GIVEN),
    "keep.rejected_days": Effect(pruned, 5),
    "keep.archive_days": Effect(pruned, 5),
    "keep.answers_days": Effect(pruned, 5),
    "keep.work_days": Effect(pruned, 5),
    "keep.receipts_days": Effect(pruned, 5),
    "keep.prune_at": Effect(run, "30 4 * * *"),
}
