"""A suite's margin is one that it can rule out; what it says it sees, the gate's test finds."""

from __future__ import annotations

import numpy as np
import pytest

from policies.gate.grading import GRADERS
from policies.gate.limits import PRESETS
from policies.gate.records import ItemResult, Role, SuiteItem
from policies.gate.sequential import Design, follow
from policies.onboarding.sizing import DISCORDANCE, TESTS, SuiteSight, fitting_margin, sight

LIMITS = PRESETS["balanced"]


def seen(right: int, of: int, *, answers: int = 10_000) -> SuiteSight:
    """Of so many items the first are answered right; at most `answers` answers differ."""
    items = [SuiteItem(id=str(n), prompt=f"p{n}", answer=f"a{n % answers}") for n in range(of)]
    results = [
        ItemResult(id=i.id, correct=n < right, output=i.answer if n < right else "none")
        for n, i in enumerate(items)
    ]
    return sight(Role.REASONING, items, results, LIMITS, "normalised", GRADERS["normalised"])


@pytest.mark.parametrize("items", [100, 220, 400, 900, 1400])
def test_four_of_five_harmless_candidates_pass_at_the_chosen_margin(items: int) -> None:
    margin, enough = fitting_margin(items, LIMITS.reasoning_margin, LIMITS)
    assert enough
    design = Design(margin, LIMITS.alpha, LIMITS.beta / TESTS)
    rng = np.random.default_rng(0)
    chances = (DISCORDANCE / 2, 1 - DISCORDANCE, DISCORDANCE / 2)
    passed = [
        follow(design, rng.choice([-1.0, 0.0, 1.0], size=items, p=chances)).decision == "pass"
        for _ in range(400)
    ]
    assert sum(passed) > 0.76 * len(passed)


def test_more_items_allow_a_smaller_margin_but_none_below_the_usual_one() -> None:
    margins = [fitting_margin(n, 0.02, LIMITS)[0] for n in (60, 150, 300, 900, 2000, 50_000)]
    assert margins == sorted(margins, reverse=True)
    assert margins[-1] == 0.02
    assert fitting_margin(10, 0.02, LIMITS) == (0.2, False)


def test_a_good_suite_is_usable_and_says_how_small_a_loss_it_finds() -> None:
    found = seen(380, 400)
    assert found.usable
    assert found.right == 0.95
    assert found.sees is not None
    assert found.sees < 2 * found.margin


def test_a_suite_that_the_base_cannot_do_or_that_has_one_answer_is_blind() -> None:
    assert "base has" in seen(4, 400).blind
    assert seen(4, 400).sees is None
    assert "other questions" in seen(400, 400, answers=1).blind
    assert not seen(0, 0).usable
    assert not seen(12, 12).usable
