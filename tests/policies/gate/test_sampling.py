"""The sample of earlier facts is bounded, spread over the batches and looks where it hurts."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from policies.gate.sampling import draw_earlier
from policies.records import Operation, Outline, key_of


def fact(
    name: str, *, subject: str | None = None, relation: str = "r", op: Operation = Operation.ASSERT
) -> Outline:
    return Outline(name, key_of(f"{name}?", subject, relation), subject, op)


def batches(sizes: list[int]) -> dict[str, list[Outline]]:
    return {f"b{n}": [fact(f"{n}-{k}") for k in range(size)] for n, size in enumerate(sizes)}


@given(
    sizes=st.lists(st.integers(0, 30), max_size=8),
    size=st.integers(0, 60),
    seed=st.integers(0, 99),
)
def test_every_batch_gets_its_share_and_no_more(sizes: list[int], size: int, seed: int) -> None:
    drawn = draw_earlier(batches(sizes), (), size, seed)
    assert len(drawn) == min(size, sum(sizes))
    assert len({f.id for _, f in drawn}) == len(drawn)
    counts = Counter(batch for batch, _ in drawn)
    unfinished = [counts[f"b{n}"] for n, s in enumerate(sizes) if counts[f"b{n}"] < s]
    if unfinished:
        assert max(counts.values(), default=0) <= min(unfinished) + 1
    assert drawn == draw_earlier(batches(sizes), (), size, seed)


def test_a_fact_that_a_new_one_may_contradict_is_always_asked() -> None:
    many = batches([400])
    many["old"] = [fact("bhutan", subject="Bhutan", relation="capital")]
    new = (fact("again", subject="bhutan", relation="Capital"),)
    drawn = draw_earlier(many, new, 10, seed=1)
    assert "bhutan" in {f.id for _, f in drawn}


def test_near_facts_take_at_most_half() -> None:
    earlier = {
        "near": [fact(f"n{k}", subject="Bhutan", relation=str(k)) for k in range(50)],
        "far": [fact(f"f{k}") for k in range(50)],
    }
    drawn = draw_earlier(earlier, (fact("new", subject="Bhutan"),), 20, seed=0)
    assert Counter(batch for batch, _ in drawn)["far"] >= 5


def test_what_is_superseded_or_learnt_again_is_not_asked() -> None:
    earlier = {"b": [fact("old", subject="X"), fact("same"), fact("kept")]}
    new = (fact("newer", subject="x", op=Operation.SUPERSEDE), fact("same"))
    assert [f.id for _, f in draw_earlier(earlier, new, 9, seed=0)] == ["kept"]
