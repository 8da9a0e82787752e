"""A canary that does harm is found, and one that does none is left alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact

from policies.canary import Traffic, fisher, harm, look_number


def more(
    so_far: Traffic, count: int, failures: float, mean_s: float, rng: np.random.Generator
) -> Traffic:
    """Requests that fail with some probability, or take exponentially long."""
    failed = int(rng.binomial(count, failures))
    took = rng.exponential(mean_s, count - failed)
    now = Traffic(requests=count, failed=failed, seconds=took.sum(), squares=float((took**2).sum()))
    return so_far + now


def watched(canary: tuple[float, float], live: tuple[float, float], seed: int) -> int:
    """After how many requests of 512 the canary is found to do harm; 0 for never. One in ten of all
    is its. Both are given by the share that fails and the mean seconds of an answer."""
    rng, tried, others = np.random.default_rng(seed), Traffic(), Traffic()
    for look in range(1, 8):
        count = 8 if look == 1 else tried.requests
        tried = more(tried, count, *canary, rng)
        others = more(others, count * 9, *live, rng)
        assert look_number(tried.requests) == look
        if harm(tried, others, slower=1.5, look=look):
            return tried.requests
    return 0


@pytest.mark.parametrize(("failures", "mean_s"), [(0.0, 0.1), (0.05, 0.1), (0.5, 2.0)])
def test_a_canary_like_the_live_revision_is_rarely_withdrawn(
    failures: float, mean_s: float
) -> None:
    like = (failures, mean_s)
    found = sum(bool(watched(like, like, seed)) for seed in range(300))
    assert found <= 6  # three are what the test allows by itself


@pytest.mark.parametrize(
    ("failures", "mean_s", "within"), [(1.0, 0.1, 8), (0.3, 0.1, 64), (0.0, 0.4, 64)]
)
def test_a_canary_that_fails_or_is_slow_is_withdrawn_soon(
    failures: float, mean_s: float, within: int
) -> None:
    for seed in range(20):
        assert 0 < watched((failures, mean_s), (0.001, 0.1), seed) <= within


def test_what_is_said_of_it() -> None:
    live = Traffic(requests=400, failed=1, seconds=40.0, squares=5.0)
    failing = Traffic(requests=32, failed=20, seconds=1.2, squares=0.2)
    assert harm(failing, live, slower=1.5, look=3) == (
        "20 of 32 requests failed, of the live revision's 1 of 400"
    )
    slow = Traffic(requests=64, seconds=25.6, squares=11.0)
    assert harm(slow, live, slower=1.5, look=4) == (
        "an answer takes 400 ms in the mean, the live revision's 100 ms"
    )
    assert harm(slow, live, slower=8, look=4) is None


def test_without_anything_to_compare_with_nothing_is_found() -> None:
    failing = Traffic(requests=50, failed=50)
    assert harm(failing, Traffic(), slower=1.5, look=3) is None
    assert harm(Traffic(), Traffic(), slower=1.5, look=1) is None


@pytest.mark.parametrize(
    ("failed", "requests", "others", "of"), [(3, 10, 1, 100), (1, 50, 4, 900), (7, 7, 0, 3)]
)
def test_the_exact_test_agrees_with_scipy(failed: int, requests: int, others: int, of: int) -> None:
    table = [[failed, requests - failed], [others, of - others]]
    known = float(fisher_exact(table, alternative="greater").pvalue)
    assert fisher(failed, requests, others, of) == pytest.approx(known, rel=1e-9)


def test_looks_come_when_the_requests_have_doubled() -> None:
    assert [look_number(n) for n in (0, 7, 8, 15, 16, 31, 32)] == [0, 0, 1, 1, 2, 2, 3]
