"""Every setting about paraphrases reaches the one policy."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.config.settings import Settings


@pytest.mark.parametrize(
    ("section", "key", "value", "field"),
    [
        ("intake", "paraphrase_source", "frames", "source"),
        ("intake", "min_paraphrases", 7, "at_admission"),
        ("train", "paraphrases", 33, "at_training"),
        ("train", "prefixed", True, "prefixed"),
        ("intake", "model_paraphrases", 5, "by_model"),
        ("intake", "model_paraphrase_budget", 17, "model_requests"),
    ],
)
def test_a_setting_changes_its_part_of_the_policy_and_no_other(
    section: str, key: str, value: Any, field: str
) -> None:
    usual = Settings().paraphrase_policy
    changed = Settings.model_validate({section: {key: value}}).paraphrase_policy
    assert getattr(usual, field) != value
    assert changed == usual.model_copy(update={field: value})
