"""What status shows of a canary."""

from __future__ import annotations

from policies.canary import Traffic
from policies.records import Record
from policies.text import counted


class CanaryView(Record):
    """The canary: whether it answers yet, for how many seconds it will, and what users asked of it
    and, meanwhile, of the live revision."""

    plan: int
    revision: int
    name: str
    share: float
    answers: bool
    left_s: float
    canary: Traffic
    live: Traffic

    @property
    def line(self) -> str:
        """In words."""
        if not self.answers:
            return f"revision {self.revision} is brought to the replicas as a canary"
        asked = counted(self.canary.requests, "request")
        return (
            f"revision {self.revision} answers {self.share:.1%} of the requests as a canary for "
            f"{self.left_s / 60:.0f} more minutes: {asked}, {self.canary.failed} failed, "
            f"{self.canary.mean_s * 1000:.0f} ms in the mean (live: {self.live.requests}, "
            f"{self.live.failed}, {self.live.mean_s * 1000:.0f} ms)"
        )
