"""The settings of a site: two replicas, small plans, little kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from daemon.config.settings import Settings


def small_settings(root: Path) -> Settings:
    tree: dict[str, Any] = {
        "state_dir": root / "state",
        "model": {"path": root / "model"},
        "server": {
            "mode": "attach",
            "urls": ["http://replica-0", "http://replica-1"],
            "drain_s": 1.0,
        },
        "probe": {"skill": root / "model" / "config.json", "path": None},
        "train": {
            "rank": 4,
            "rank_budget": 16,
            "max_facts": 6,
            "attempts": 3,
            "relearn": 1,
            "backoff_s": 10,
            "replay": {"known": "", "reasoning": ""},
        },
        "gate": {"suites": ()},
        "intake": {"stable_s": 2.0, "rescan_s": 10.0, "watch": "off"},
        "keep": {"revisions": 2, "rejected_days": 1, "work_days": 1, "receipts_days": 1},
    }
    return Settings.model_validate(tree).rooted(root)
