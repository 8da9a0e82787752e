"""What is known of one replica, and its troubles in words for people."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from policies.errors import PaloradError, ServerRefused, ServerUnusable
from policies.records import Record

ASLEEP: Final = "sleeps while palorad trains; it is verified again when it wakes"


class ReplicaStatus(Record):
    """What is known of one replica.

    `active` is the model that its alias answers from, None when nothing is routed; `verified_at`
    says when the active revision was verified on the process that runs now. While `at_work` a
    revision is being loaded or verified there, and `reason` says which.
    """

    url: str
    healthy: bool = False
    asleep: bool = False
    at_work: bool = False
    target: str | None = None
    active: str | None = None
    verified_at: datetime | None = None
    loaded: tuple[str, ...] = ()
    reason: str = "not asked yet"


class NotServed(ServerUnusable):
    """A revision that must not be routed on a replica; the message says why."""


def explain(error: PaloradError, url: str) -> str:
    """The error as a person should read it: what is wrong with the set-up, where that is known."""
    if isinstance(error, ServerRefused) and error.status == 404 and "/palorad/" in str(error):
        return (
            f"{url} runs without palorad's middleware: start it with "
            "--middleware palorad_alias.AliasMiddleware (docs/serving.md)"
        )
    if isinstance(error, ServerRefused) and error.status in {401, 403}:
        return (
            f"{url} does not take palorad's admin key: let PALORAD_ADMIN_KEY_FILE there and "
            "[server] admin_key_file here name the same key, and see that no other program holds "
            "that port"
        )
    return str(error)
