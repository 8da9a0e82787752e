"""Every setting is consumed: changed, each makes a difference that is observed where it is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.config.errors import key_paths
from daemon.config.settings import Settings
from tests.config.effects import Effect, feeds, serving, taking_in

EFFECTS: dict[str, Effect] = {**serving.EFFECTS, **taking_in.EFFECTS, **feeds.EFFECTS}


def test_every_key_has_an_effect_and_every_effect_a_key() -> None:
    assert set(EFFECTS) == set(key_paths(Settings))


@pytest.mark.parametrize("key", EFFECTS)
def test_a_changed_setting_changes_what_is_observed(key: str, tmp_path: Path) -> None:
    effect = EFFECTS[key]
    before = effect.seen(key, tmp_path / "before", changed=False)
    assert effect.seen(key, tmp_path / "again", changed=False) == before, "differs by itself"
    assert effect.seen(key, tmp_path / "changed", changed=True) != before
