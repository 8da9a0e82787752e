"""Every setting is consumed: changed, each makes a difference that is observed where it is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.config.errors import key_paths
from daemon.config.settings import Settings
from tests.config.effects import (
    Effect,
    feeds,
    grading,
    judging,
    keeping,
    learning,
    monitoring,
    running,
    serving,
    taking_in,
    telling,
    trying,
)

MODULES = (
    serving,
    learning,
    judging,
    grading,
    taking_in,
    feeds,
    running,
    keeping,
    telling,
    monitoring,
    trying,
)
EFFECTS: dict[str, Effect] = {
    key: effect for module in MODULES for key, effect in module.EFFECTS.items()
}


def test_every_key_has_an_effect_and_every_effect_a_key() -> None:
    assert sum(len(module.EFFECTS) for module in MODULES) == len(EFFECTS)
    assert set(EFFECTS) == set(key_paths(Settings))


@pytest.mark.parametrize("key", EFFECTS)
def test_a_changed_setting_changes_what_is_observed(key: str, tmp_path: Path) -> None:
    effect = EFFECTS[key]
    before = effect.seen(key, tmp_path / "before", changed=False)
    assert effect.seen(key, tmp_path / "again", changed=False) == before, "differs by itself"
    assert effect.seen(key, tmp_path / "changed", changed=True) != before


def test_a_warm_start_replays_an_even_sample(tmp_path: Path) -> None:
    effect = EFFECTS["train.max_replay"]
    assert effect.seen("train.max_replay", tmp_path / "six", changed=True) == "[2, 2, 2]"
