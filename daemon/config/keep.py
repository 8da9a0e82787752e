"""[keep]: what is kept, and for how long."""

from __future__ import annotations

from typing import Literal

from daemon.config.sections import Cron, Section
from policies.retention import KeepLimits


class KeepSettings(KeepLimits, Section):
    """[keep]: how many revisions are kept, and how long what is no longer needed."""

    prune_at: Cron | Literal[""] = "47 3 * * *"
    """When what need not be kept is removed, as a cron expression in UTC; empty: never."""
