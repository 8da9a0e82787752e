"""[notify]: who is told what happens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from daemon.config.sections import OptionalPath, Section, Url
from policies.notifications import Notification


class NotifySettings(Section):
    """[notify]: a webhook to which palorad posts what happens."""

    webhook: Url | Literal[""] = ""
    """An address to which notifications are posted as JSON, signed; empty: nowhere."""
    key_file: OptionalPath = None
    """A file with the key that signs them. Without it `webhook.key` is made in state_dir at the
    first start."""
    events: tuple[Notification, ...] = tuple(Notification)
    """The [types](notifications.md#types) of notifications that are posted."""
    timeout_s: float = Field(default=10, gt=0)
    """How long the receiver may take to answer."""
    dead_after_s: float = Field(default=86400, gt=0)
    """A notification that the receiver has not taken for this long is given up: it becomes a dead
    letter, which `palorad notify retry` sends again."""
    trouble_after_s: float = Field(default=60, ge=0)
    """Trouble is told once it has lasted this long, and its end once it has been gone this long."""
    remind_s: float = Field(default=14400, ge=0)
    """How often trouble that lasts is told again; 0: never."""
