"""[monitor]: what the alias is asked, when that is trouble, and whether palorad rolls back."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from daemon.config.settings import Settings
from tests.config.effects import Effect
from tests.config.effects.running import Here
from tests.support.evaluating import right
from tests.support.monitored import Monitored

WRONG = ("What is 1", "What is 2", "Which new 1", "Tell me new 1")


def mostly(prompt: str) -> str:
    """A few questions are answered wrong."""
    return "13 maybe" if prompt.startswith(WRONG) else right(prompt)


def rounds(settings: Settings, root: Path) -> object:
    """How many questions of which kind, and in which rounds there is trouble, and what is live."""
    chosen = settings.monitor.model_dump(exclude={"every_s"})
    place, seen = Monitored(root / "world", **chosen), []
    for number in range(14):
        place.answers(mostly if number < 9 else right)
        place.rounds(1)
        seen.append((bool(place.monitor.trouble), place.target))
    asked = [("+" in prompt, count) for (_, prompt), count in place.replicas[0].asked.items()]
    return seen, sum(n for sums, n in asked if sums), sum(n for sums, n in asked if not sums)


def scheduled(settings: Settings, root: Path) -> object:
    """How often a round is asked."""
    here, repeated = Here(settings, root), []

    def every(seconds: float, *_: object, **__: object) -> None:
        repeated.append(seconds)

    with mock.patch("daemon.loop.monitoring.every", every):
        list(here.service._monitoring.ticks())
    return repeated


GIVEN = {"monitor.facts": 20, "monitor.reasoning": 20, "monitor.share": 0.95}
EFFECTS: dict[str, Effect] = {
    "monitor.every_s": Effect(scheduled, 600.0),
    "monitor.facts": Effect(rounds, 5, GIVEN),
    "monitor.reasoning": Effect(rounds, 5, GIVEN),
    "monitor.budget": Effect(rounds, 100, GIVEN),
    "monitor.share": Effect(rounds, 0.1, GIVEN),
    "monitor.fail_after": Effect(rounds, 5, GIVEN),
    "monitor.recover_after": Effect(rounds, 4, GIVEN),
    "monitor.rollback": Effect(rounds, True, GIVEN),
}
