"""One suite of the gate: the candidate against each baseline on the same items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from policies.gate.evidence import (
    PairedOutcomes,
    SuiteEvidence,
    SuiteQuestions,
    above,
    by_item,
    by_stratum,
    draw,
    draw_order,
    failures,
    pair,
    rate,
)
from policies.gate.limits import GateLimits
from policies.gate.records import ItemResult, Outcome, Role, SuiteItem, SuiteVerdict
from policies.gate.sequential import Design, SequentialResult, follow, items_to_pass, loses_more

# The share of the margin that the luck of one frozen measurement may take.
_LARGEST_LUCK: Final = 0.5


@dataclass(frozen=True, slots=True)
class _Comparison:
    """The candidate against one baseline, tested."""

    against: str
    design: Design
    pairs: PairedOutcomes
    progress: SequentialResult
    fallen: tuple[str, ...]
    complete: bool

    @property
    def outcome(self) -> Outcome:
        if self.fallen or self.progress.decision == "fail":
            return Outcome.FAIL
        if self.complete and self.progress.decision is None:
            return Outcome.PASS if self.lost <= self.allowed else Outcome.FAIL
        return Outcome.PASS if self.progress.decision == "pass" else Outcome.INCONCLUSIVE

    @property
    def lost(self) -> float:
        """Items lost less items won, over all that are answered."""
        return -float(self.pairs.outcomes.sum())

    @property
    def allowed(self) -> int:
        """The margin in whole items, rounded up: of a handful one may always be lost."""
        return math.ceil(self.design.margin * len(self.pairs.outcomes))

    @property
    def needed(self) -> int:
        """Items in all that a candidate that lost nothing would need, going on from here."""
        more = items_to_pass(
            self.design, self.progress.expected_discordance, self.progress.log_pass
        )
        used = len(self.pairs.clusters)
        items = self.pairs.items(used)
        return items + round(more * (items / used if used else 1))


def judge_paired(
    suite: SuiteEvidence, seed: str, baselines: Sequence[str], limits: GateLimits, beta: float
) -> SuiteVerdict:
    """The verdict on one suite; each of its tests may fail a harmless candidate with `beta`."""
    asked = suite.questions
    candidate = by_item(suite.candidate)
    order = draw_order(asked.items, seed)
    drawn = draw(order, candidate)
    scores = {name: by_item(getattr(suite, name)) for name in baselines}
    if gap := _gap(drawn, {"candidate": candidate, **scores}):
        return inconclusive(asked, gap)
    margin = asked.margin or limits.margin(asked.role)
    luck = suite.stability.luck(len(order), limits.alpha) if suite.stability else 0.0
    if luck > _LARGEST_LUCK * margin:
        return inconclusive(asked, _too_unstable(suite, luck, margin))
    design = Design(margin - luck, limits.alpha, beta)
    exhausted = len(drawn) == len(order)
    every = asked.complete and exhausted
    comparisons = [
        _compare(name, design, pair(drawn, candidate, scores[name]), limits, complete=every)
        for name in baselines
    ]
    if asked.role is Role.RETENTION and limits.retention_floor is not None:
        floor = above(drawn, candidate, limits.retention_floor)
        comparisons.append(_compare("floor", design, floor, limits, complete=every))
    return _paired_verdict(suite, drawn, comparisons, exhausted=exhausted)


def _compare(
    against: str, design: Design, pairs: PairedOutcomes, limits: GateLimits, *, complete: bool
) -> _Comparison:
    strata = by_stratum(pairs) if against != "floor" else {}
    fallen = tuple(
        name
        for name, outcomes in strata.items()
        if loses_more(outcomes, allowed=limits.stratum_loss, beta=design.beta / len(strata))
    )
    progress = follow(design, pairs.outcomes)
    return _Comparison(against, design, pairs, progress, fallen, complete)


def _paired_verdict(
    suite: SuiteEvidence,
    drawn: Sequence[tuple[SuiteItem, ...]],
    comparisons: Sequence[_Comparison],
    *,
    exhausted: bool,
) -> SuiteVerdict:
    candidate = by_item(suite.candidate)
    items = [item for cluster in drawn for item in cluster]
    rates = {name: by_item(getattr(suite, name)) for name in ("reference", "live", "candidate")}
    outcome = together({c.outcome for c in comparisons})
    telling = next((c for c in comparisons if c.outcome is outcome and c.against != "floor"), None)
    shown = telling or comparisons[0]
    undecided = [c for c in comparisons if c.outcome is Outcome.INCONCLUSIVE]
    return SuiteVerdict(
        suite=suite.questions.suite,
        role=suite.questions.role,
        outcome=outcome,
        reason="; ".join(
            _sentence(c, suite, exhausted=exhausted) for c in comparisons if c.outcome is outcome
        ),
        reference=rate(items, rates["reference"]),
        live=rate(items, rates["live"]),
        candidate=rate(items, rates["candidate"]),
        items_used=len(items),
        items_needed=max(c.needed for c in undecided) if outcome is Outcome.INCONCLUSIVE else None,
        newly_failing=failures(shown.pairs.lost, candidate, rates.get(shown.against, {})),
        newly_passing=shown.pairs.won,
    )


def together(outcomes: set[Outcome]) -> Outcome:
    """Fail if any fails, pass if all pass and there is one."""
    if Outcome.FAIL in outcomes:
        return Outcome.FAIL
    return Outcome.PASS if outcomes == {Outcome.PASS} else Outcome.INCONCLUSIVE


def _gap(
    drawn: Sequence[tuple[SuiteItem, ...]], scores: Mapping[str, Mapping[str, ItemResult]]
) -> str | None:
    """Which of the items drawn has no answer from whom."""
    items = [item.id for cluster in drawn for item in cluster]
    if not items:
        return "no item has been answered yet"
    for name, answers in scores.items():
        if missing := [item for item in items if item not in answers]:
            return (
                f"the {name} has no answer to {len(missing)} of the {len(items)} items drawn "
                f"(the first is {missing[0]!r})"
            )
    return None


def inconclusive(asked: SuiteQuestions, reason: str) -> SuiteVerdict:
    """Nothing could be decided, for this reason."""
    return SuiteVerdict(
        suite=asked.suite, role=asked.role, outcome=Outcome.INCONCLUSIVE, reason=reason
    )


def _sentence(comparison: _Comparison, suite: SuiteEvidence, *, exhausted: bool) -> str:
    """What was found against one baseline."""
    progress, design = comparison.progress, comparison.design
    who = f"the {comparison.against}"
    used = comparison.pairs.items(progress.items)
    if comparison.fallen:
        return f"too much of what {who} answers is lost in {', '.join(comparison.fallen)}"
    seen = f"after {used} items ({points(progress.mean, sign=True)})"
    if progress.decision == "pass":
        return f"worse than {who} by {points(design.margin)} is ruled out {seen}"
    if progress.decision == "fail":
        return f"worse than {who} {seen}"
    if comparison.complete:
        return (
            f"all {used} there are were asked: {comparison.lost:+.3g} lost against {who}, "
            f"at most {comparison.allowed} may be"
        )
    more = max(0, comparison.needed - comparison.pairs.items(len(comparison.pairs.clusters)))
    end = f"all {len(suite.questions.items)} items are used" if exhausted else "undecided"
    return (
        f"{end} against {who} {seen}, {percent(progress.discordance)} answered differently; "
        f"about {more} more items are needed for a margin of {points(design.margin)}"
    )


def _too_unstable(suite: SuiteEvidence, luck: float, margin: float) -> str:
    flips = suite.stability.flips if suite.stability else 0.0
    return (
        f"decoding is too unstable: {percent(flips)} of the reference's answers change when asked "
        f"again, so one measurement may be off by {points(luck)}; the margin is {points(margin)}"
    )


def points(share: float, *, sign: bool = False) -> str:
    """0.02 as "2 points", with `sign` as "+2.0 points"."""
    value = f"{100 * share:+.1f}" if sign else f"{100 * share:.3g}"
    return f"{value} point" if value == "1" else f"{value} points"


def percent(share: float) -> str:
    """0.05 as "5 %"."""
    return f"{100 * share:.3g} %"
