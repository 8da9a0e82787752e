"""What has happened so far, in counts and seconds, followed event by event."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Final

from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Event

OUTCOMES: Final = {
    "plan.passed": "pass",
    "plan.rejected": "fail",
    "plan.inconclusive": "inconclusive",
}


class Spans:
    """How often something was waited for, and how many seconds that took in all."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self._since: dict[tuple[str, str], datetime] = {}

    def begin(self, what: str, of: str, at: datetime) -> None:
        """It begins to be waited for."""
        self._since[what, of] = at

    def end(self, what: str, of: str, at: datetime) -> None:
        """It has come; nothing counts that was not begun."""
        since = self._since.pop((what, of), None)
        if since is not None:
            self.count[what] += 1
            self.seconds[what] += int(1000 * (at - since).total_seconds())


class Counts:
    """Follows the ledger's events from the first on, piece by piece.

    `stages` are seconds of children (in thousandths), `swaps` from a moved target to its being
    served, `decisions` what a person took to decide about an inconclusive plan.
    """

    def __init__(self) -> None:
        self.seq = 0
        self.verdicts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.rollbacks = 0
        self.feed_failures: Counter[str] = Counter()
        self.stages, self.swaps, self.decisions = Spans(), Spans(), Spans()

    def follow(self, ledger: Ledger, piece: int) -> bool:
        """Read on, by at most `piece` events; whether there may be more."""
        events = ledger.listings.events_after(self.seq, piece)
        for event in events:
            self._one(event)
        if events:
            self.seq = events[-1].seq
        return len(events) == piece

    def _one(self, event: Event) -> None:
        kind, about, at, said = event.kind, event.subject, event.at, event.payload
        if kind == "stage.started":
            self.stages.begin(str(said.get("stage")), about, at)
        elif kind == "stage.failed":
            self.failures[str(said.get("stage"))] += 1
        elif kind == "plan.trained":
            self.stages.end("train", about, at)
        elif kind in OUTCOMES and said.get("from") == "trained":
            self.verdicts[OUTCOMES[kind]] += 1
            self.stages.end("evaluate", about, at)
            if kind == "plan.inconclusive":
                self.decisions.begin("decision", about, at)
        elif kind in OUTCOMES:
            self.decisions.end("decision", about, at)
        elif kind == "target":
            self.swaps.begin("swap", about, at)
        elif kind == "served":
            self.swaps.end("swap", about, at)
        elif kind == "plan.rolled-back":
            self.rollbacks += 1
        elif kind == "feed.opened":
            self.feed_failures[about] += 1
