"""One suite of the gate: the candidate against each baseline on the same items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from policies.gate.baselines import Model
from policies.gate.blindness import blind
from policies.gate.evidence import (
    PairedOutcomes,
    SuiteEvidence,
    SuiteQuestions,
    above,
    by_item,
    by_stratum,
    failures,
    pair,
    rate,
)
from policies.gate.figures import delta, limit, percent, pp
from policies.gate.limits import GateLimits
from policies.gate.power import detectable_loss
from policies.gate.records import ItemResult, Outcome, Role, SuiteItem, SuiteVerdict
from policies.gate.sampling import draw_order, drawn
from policies.gate.sequential import Design, SequentialResult, follow, items_to_pass, loses_more

# Sums of fractions miss a bound that they should meet by less than this.
ROUNDING: Final = 1e-9
# The share of the margin that the luck of one frozen measurement may take.
_LARGEST_LUCK: Final = 0.5


@dataclass(frozen=True, slots=True)
class _Comparison:
    """The candidate against one baseline (a model, or a fixed floor where None), tested.

    `right` is how many items the model has right.
    """

    model: Model | None
    baseline: str
    design: Design
    pairs: PairedOutcomes
    result: SequentialResult
    fallen: tuple[str, ...]
    complete: bool
    right: int | None

    @property
    def outcome(self) -> Outcome:
        if self.fallen or self.result.decision == "fail":
            return Outcome.FAIL
        if self.complete and self.result.decision is None:
            return Outcome.PASS if self.lost <= self.allowed + ROUNDING else Outcome.FAIL
        return Outcome.PASS if self.result.decision == "pass" else Outcome.INCONCLUSIVE

    @property
    def lost(self) -> float:
        """Items lost less items won, over all that are answered."""
        return -math.fsum(self.pairs.outcomes)

    @property
    def allowed(self) -> int:
        """The margin in whole items, rounded up: of a handful one may be lost, but never all that
        the baseline has right.
        """
        whole = math.ceil(self.design.margin * len(self.pairs.outcomes) - ROUNDING)
        return whole if self.right is None else max(0, min(whole, self.right - 1))

    def sees(self, clusters: int) -> float | None:
        """The smallest loss that all the suite's clusters would show with 80 % power."""
        if self.complete:
            return (self.allowed + 1) / len(self.pairs.outcomes)
        return detectable_loss(self.design, clusters, self.result.expected_discordance)

    @property
    def needed(self) -> int:
        """Items in all that a candidate that lost nothing would need, going on from here."""
        more = items_to_pass(self.design, self.result.expected_discordance, self.result.log_pass)
        used = len(self.pairs.clusters)
        items = self.pairs.items(used)
        return items + round(more * (items / used if used else 1))


def judge_paired(
    suite: SuiteEvidence, seed: str, baselines: Sequence[Model], limits: GateLimits, beta: float
) -> SuiteVerdict:
    """The verdict on one suite; each of its tests may fail a harmless candidate with `beta`."""
    asked = suite.questions
    candidate = by_item(suite.candidate)
    order = draw_order(asked.items, seed)
    clusters = drawn(order, candidate)
    scores = {model: by_item(suite.score(model)) for model in baselines}
    if gap := _gap(clusters, {"candidate": candidate, **scores}):
        return inconclusive(asked, gap)
    margin = asked.margin or limits.margin(asked.role)
    luck = suite.stability.luck(len(order), limits.alpha) if suite.stability else 0.0
    if luck > _LARGEST_LUCK * margin:
        return inconclusive(asked, _too_unstable(suite, luck, margin))
    design = Design(margin - luck, limits.alpha, beta)
    exhausted = len(clusters) == len(order)
    every = asked.complete and exhausted
    comparisons = [
        _against(
            model,
            design,
            pair(clusters, candidate, scores[model]),
            limits,
            complete=every,
            right=sum(scores[model][item.id].correct for cluster in clusters for item in cluster),
        )
        for model in baselines
    ]
    if asked.role is Role.RETENTION and limits.retention_floor is not None:
        floor = above(clusters, candidate, limits.retention_floor)
        comparisons.append(_against(None, design, floor, limits, complete=every))
    verdict = _paired_verdict(suite, clusters, comparisons, limits, exhausted=exhausted)
    return _unless_blind(suite, verdict, comparisons, limits, clusters=len(order), margin=margin)


def _against(
    model: Model | None,
    design: Design,
    pairs: PairedOutcomes,
    limits: GateLimits,
    *,
    complete: bool,
    right: int | None = None,
) -> _Comparison:
    strata = by_stratum(pairs) if model else {}
    fallen = tuple(
        name
        for name, outcomes in strata.items()
        if loses_more(outcomes, allowed=limits.stratum_loss, beta=design.beta / len(strata))
    )
    return _Comparison(
        model=model,
        baseline=model or f"the floor of {limit(limits.retention_floor or 0)}",
        design=design,
        pairs=pairs,
        result=follow(design, pairs.outcomes),
        fallen=fallen,
        complete=complete,
        right=right,
    )


def _paired_verdict(
    suite: SuiteEvidence,
    clusters: Sequence[tuple[SuiteItem, ...]],
    comparisons: Sequence[_Comparison],
    limits: GateLimits,
    *,
    exhausted: bool,
) -> SuiteVerdict:
    items = [item for cluster in clusters for item in cluster]
    base, live, candidate = (by_item(s) for s in (suite.base, suite.live, suite.candidate))
    outcome = together({c.outcome for c in comparisons})
    deciding = [c for c in comparisons if c.outcome is outcome]
    shown = next((c for c in deciding if c.model), comparisons[0])
    against: dict[Model | None, Mapping[str, ItemResult]] = {"base": base, "live": live, None: {}}
    undecided = [c for c in comparisons if c.outcome is Outcome.INCONCLUSIVE]
    return SuiteVerdict(
        suite=suite.questions.suite,
        role=suite.questions.role,
        outcome=outcome,
        reason="; ".join(_sentence(c, limits, exhausted=exhausted) for c in deciding),
        base=rate(items, base),
        live=rate(items, live),
        candidate=rate(items, candidate),
        items_used=len(items),
        items_needed=max(c.needed for c in undecided) if outcome is Outcome.INCONCLUSIVE else None,
        newly_failing=failures(shown.pairs.lost, candidate, against[shown.model]),
        newly_passing=shown.pairs.won,
    )


def _unless_blind(
    suite: SuiteEvidence,
    verdict: SuiteVerdict,
    comparisons: Sequence[_Comparison],
    limits: GateLimits,
    *,
    clusters: int,
    margin: float,
) -> SuiteVerdict:
    """The verdict with how small a loss the suite could show; a pass of a blind one is none."""
    found = [c.sees(clusters) for c in comparisons if c.model or len(comparisons) == 1]
    shown = [loss for loss in found if loss is not None]
    sees = max(shown) if len(shown) == len(found) else None
    why = blind(
        suite,
        [c.model for c in comparisons if c.model],
        margin=margin,
        floor=limits.retention_floor,
        sees=sees,
    )
    update: dict[str, object] = {
        "sees": None if why else sees,
        "sees_items": len(suite.questions.items),
        "blind": why,
    }
    if why and verdict.outcome is not Outcome.FAIL:
        update |= {"outcome": Outcome.INCONCLUSIVE, "reason": f"blind: {why} ({verdict.reason})"}
    return verdict.model_copy(update=update)


def together(outcomes: set[Outcome]) -> Outcome:
    """Fail if any fails, pass if all pass and there is one."""
    if Outcome.FAIL in outcomes:
        return Outcome.FAIL
    return Outcome.PASS if outcomes == {Outcome.PASS} else Outcome.INCONCLUSIVE


def _gap(
    clusters: Sequence[tuple[SuiteItem, ...]], scores: Mapping[Model, Mapping[str, ItemResult]]
) -> str | None:
    """Which of the items drawn has no answer from whom."""
    items = [item.id for cluster in clusters for item in cluster]
    if not items:
        return "no item has been answered yet"
    for model, answers in scores.items():
        if missing := [item for item in items if item not in answers]:
            return (
                f"{model} has no answer to {len(missing)} of the {len(items)} items drawn "
                f"(the first is {missing[0]!r})"
            )
    return None


def inconclusive(asked: SuiteQuestions, reason: str) -> SuiteVerdict:
    """Nothing could be decided, for this reason."""
    return SuiteVerdict(
        suite=asked.suite, role=asked.role, outcome=Outcome.INCONCLUSIVE, reason=reason
    )


def _sentence(comparison: _Comparison, limits: GateLimits, *, exhausted: bool) -> str:
    """What was found against one baseline; Δ is the candidate's accuracy less the baseline's."""
    result, baseline = comparison.result, comparison.baseline
    if comparison.fallen:
        return (
            f"inferior to {baseline} in {', '.join(comparison.fallen)}: "
            f"over {limit(limits.stratum_loss)} of its items newly failing"
        )
    word = {
        Outcome.PASS: "non-inferior to",
        Outcome.FAIL: "inferior to",
        Outcome.INCONCLUSIVE: "undecided against",
    }[comparison.outcome]
    used = str(comparison.pairs.items(result.items))
    if result.decision is None and exhausted:
        used = f"all {used}"
    found = (
        f"{word} {baseline}: margin {pp(comparison.design.margin)}, n = {used}, "
        f"Δ = {delta(result.mean)}"
    )
    if result.decision is not None:
        return found
    if comparison.complete:
        kind = "loss" if comparison.lost >= 0 else "gain"
        return (
            f"{found}, net {kind} {abs(comparison.lost):.3g} (at most "
            f"{comparison.allowed} may be lost)"
        )
    more = max(0, comparison.needed - comparison.pairs.items(len(comparison.pairs.clusters)))
    return f"{found}, {percent(result.discordance)} discordant; about {more} more items needed"


def _too_unstable(suite: SuiteEvidence, luck: float, margin: float) -> str:
    flips = suite.stability.flips if suite.stability else 0.0
    return (
        f"decoding is too unstable: {percent(flips)} of base's answers change when asked again, "
        f"so one measurement may be off by {pp(luck)}; the margin is {pp(margin)}"
    )
