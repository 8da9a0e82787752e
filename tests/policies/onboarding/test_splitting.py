"""No part asks what another asks, and every family is in each part in the same shares."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from policies.onboarding.splitting import SplitKey, near_duplicates, share_out

SHARES = {"replay": 0.4, "suite": 0.4, "report": 0.2}


def alone(*pairs: tuple[str, str]) -> list[list[int]]:
    return near_duplicates([SplitKey("f", prompt, answer) for prompt, answer in pairs])


def test_the_same_question_in_another_order_or_with_one_word_more_is_a_near_duplicate() -> None:
    assert alone(("Who wrote Hamlet?", "Shakespeare"), ("Hamlet: who wrote?", "x")) == [[0, 1]]
    capital = ("What is the capital of Nepal?", "Kathmandu")
    assert alone(capital, ("What is the capital city of Nepal?", "kathmandu")) == [[0, 1]]


def test_questions_about_different_things_are_not() -> None:
    nepal, peru = "What is the capital of Nepal?", "What is the capital of Peru?"
    assert alone((nepal, "Kathmandu"), (peru, "Lima")) == [[0], [1]]
    stories = [(f"Ann has {n} apples and buys 3 more. How many?", str(n + 3)) for n in range(9)]
    assert len(alone(*stories)) == 9


PROMPTS = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.lists(st.sampled_from(["rain", "sun", "snow", "wind", "fog"]), min_size=1, max_size=4),
        st.sampled_from("xy"),
    ),
    max_size=40,
)


@given(rows=PROMPTS, seed=st.integers(0, 5))
def test_every_row_is_in_one_part_and_near_duplicates_stay_together(
    rows: list[tuple[str, list[str], str]], seed: int
) -> None:
    asked = [SplitKey(family, " ".join(words), answer) for family, words, answer in rows]
    numbers = list(range(len(asked)))
    parts = share_out(numbers, SHARES, asked.__getitem__, Random(seed))
    assert sorted(n for part in parts.values() for n in part) == numbers
    where = {n: name for name, part in parts.items() for n in part}
    for group in near_duplicates(asked):
        assert len({where[n] for n in group}) == 1
    words = {n: frozenset(rows[n][1]) for n in numbers}
    for n in numbers:
        for other in numbers:
            if words[n] == words[other]:
                assert where[n] == where[other]


def test_each_family_has_its_share_of_each_part_and_the_seed_decides() -> None:
    rows = [SplitKey(f, f"{f} question {n}", str(n)) for f in ("big", "small") for n in range(50)]
    parts = share_out(rows, SHARES, lambda row: row, Random(1))
    assert {name: len(part) for name, part in parts.items()} == {
        "replay": 40,
        "suite": 40,
        "report": 20,
    }
    assert Counter(row.family for row in parts["report"]) == {"big": 10, "small": 10}
    assert parts == share_out(rows, SHARES, lambda row: row, Random(1))
    assert parts != share_out(rows, SHARES, lambda row: row, Random(2))
