"""Whom a candidate is compared with, by the role of the suite."""

from __future__ import annotations

from typing import Final, Literal

from policies.gate.records import Role

Model = Literal["base", "live", "candidate"]
"""The served weights without adapters, the live revision, and what is to be judged."""

PAIRED: Final = (Role.REASONING, Role.RETENTION, Role.LOCALITY)
"""Roles whose suites compare answers item by item."""


def baselines(role: Role, *, live: bool) -> tuple[Model, ...]:
    """Whom a candidate is compared with; `live` says whether a revision serves at all.

    Base never learnt the earlier facts, so only live is a baseline there. New facts are judged by
    themselves.
    """
    revision: tuple[Model, ...] = ("live",) if live else ()
    match role:
        case Role.REASONING:
            return ("base", *revision)
        case Role.LOCALITY | Role.DRIFT:
            return ("base",)
        case Role.RETENTION:
            return revision
        case Role.FACTS:
            return ()


def models_asked(role: Role, *, live: bool) -> tuple[Model, ...]:
    """Who is asked, in this order, the candidate last.

    New facts are asked of what answers now, too: not for the verdict, but to show what changes.
    """
    if role is Role.FACTS:
        return ("live" if live else "base", "candidate")
    return (*baselines(role, live=live), "candidate")
