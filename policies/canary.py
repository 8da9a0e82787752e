"""Whether a canary does harm, by what it and meanwhile the live revision answered."""

from __future__ import annotations

import math
from typing import Final

from policies.records import Record

ALPHA: Final = 0.01
FIRST_LOOK: Final = 8
TIMED: Final = 30


class Traffic(Record):
    """What users asked of one revision: requests, those of them that failed (5xx), and the seconds
    that the others took, summed, and summed as squares."""

    requests: int = 0
    failed: int = 0
    seconds: float = 0.0
    squares: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        """Both together, for instance of two replicas."""
        return Traffic(
            requests=self.requests + other.requests,
            failed=self.failed + other.failed,
            seconds=self.seconds + other.seconds,
            squares=self.squares + other.squares,
        )

    @property
    def answered(self) -> int:
        """Requests that did not fail."""
        return self.requests - self.failed

    @property
    def mean_s(self) -> float:
        """Mean seconds of an answer; 0 where there is none."""
        return self.seconds / self.answered if self.answered else 0.0

    @property
    def _variance_of_mean(self) -> float:
        spread = self.squares / self.answered - self.mean_s**2
        return max(spread, 0.0) / (self.answered - 1)


def look_number(requests: int) -> int:
    """Which look at the canary is due after so many of its requests: one each time they double.

    0 before the first. Looking all the time would find harm by chance sooner or later.
    """
    return int(math.log2(requests / FIRST_LOOK)) + 1 if requests >= FIRST_LOOK else 0


def harm(canary: Traffic, live: Traffic, *, slower: float, look: int) -> str | None:
    """What speaks against the canary at the `look`-th look, in words; None where nothing does.

    A share of failed requests that is higher than the live revision's (Fisher's exact test,
    one-sided), or answers that take more than `slower` times as long in the mean (z test, from 30
    answers of each). All looks and both tests together find harm where there is none with a
    probability of at most 0.01 (Bonferroni: look k spends 0.01/(k(k+1))).
    """
    if not look:
        return None
    level = ALPHA / (look * (look + 1)) / 2
    if fisher(canary.failed, canary.requests, live.failed, live.requests) <= level:
        return (
            f"{canary.failed} of {canary.requests} requests failed, of the live revision's "
            f"{live.failed} of {live.requests}"
        )
    if min(canary.answered, live.answered) < TIMED:
        return None
    excess = canary.mean_s - slower * live.mean_s
    spread = math.sqrt(canary._variance_of_mean + slower**2 * live._variance_of_mean)
    if excess > 0 and 0.5 * math.erfc(excess / spread / math.sqrt(2) if spread else 40) <= level:
        return (
            f"an answer takes {canary.mean_s * 1000:.0f} ms in the mean, the live revision's "
            f"{live.mean_s * 1000:.0f} ms"
        )
    return None


def fisher(failed: int, requests: int, other_failed: int, other_requests: int) -> float:
    """The probability of at least `failed` failures here if both fail equally often, given how many
    there were in all (Fisher's exact test, one-sided); 1 where nothing can be compared."""
    if not (failed and requests and other_requests):
        return 1.0
    total, bad = requests + other_requests, failed + other_failed
    whole = _log_choose(total, bad)
    return min(
        1.0,
        sum(
            math.exp(_log_choose(requests, n) + _log_choose(other_requests, bad - n) - whole)
            for n in range(failed, min(bad, requests) + 1)
        ),
    )


def _log_choose(n: int, k: int) -> float:
    if not 0 <= k <= n:
        return -math.inf
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
