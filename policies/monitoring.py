"""When answers that are asked for all day count as wrong, and when as right again."""

from __future__ import annotations

from policies.records import Record


class Round(Record):
    """How many of the questions of one kind were answered right."""

    right: int
    asked: int

    def falls_short(self, share: float) -> bool:
        """Whether fewer than this share were; nothing asked never falls short."""
        return self.right < share * self.asked


class ReplicaStanding(Record):
    """One replica over the rounds: how many in a row fell short, or did not, and what that makes
    of it. One bad round is no failure, and one good round no recovery."""

    short: int = 0
    good: int = 0
    failing: bool = False

    def after(self, *, short: bool, fail_after: int, recover_after: int) -> ReplicaStanding:
        """The standing after one more round."""
        if short:
            count = self.short + 1
            return ReplicaStanding(short=count, failing=self.failing or count >= fail_after)
        count = self.good + 1
        return ReplicaStanding(good=count, failing=self.failing and count < recover_after)
