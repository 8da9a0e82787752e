"""What the gate judges: who answered which items, laid side by side."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from pydantic import Field

from policies.gate.baselines import Model
from policies.gate.records import (
    FailedItem,
    ItemResult,
    Rate,
    Role,
    SuiteItem,
    SuiteScore,
    UnlearningEvidence,
)
from policies.gate.stability import Stability
from policies.records import Record


class SuiteQuestions(Record):
    """A suite as the gate sees it: its items in any order, and its own margin if it has one.

    `complete` says that the items are all there are and no sample: once every one is answered,
    the drop that is seen is the drop, and nothing is left to be inferred. `left_out` counts the
    questions that are not among the items because facts have changed their answers. `grader` is
    how answers are compared, `grader_because` why, where that was found out.
    """

    suite: str
    role: Role
    fingerprint: str
    items: tuple[SuiteItem, ...]
    margin: float | None = Field(default=None, gt=0, lt=1)
    complete: bool = False
    left_out: int = Field(default=0, ge=0)
    grader: str = ""
    grader_because: str = ""


class Control(Record):
    """What the grader makes of one model's first `items` answers.

    `chance` is the share that is right as an answer to another question, `mentioned` counts those
    that are refused although they mention the expected answer.
    """

    items: int = Field(default=0, ge=0)
    chance: float = Field(default=0.0, ge=0, le=1)
    mentioned: int = Field(default=0, ge=0)


class SuiteEvidence(Record):
    """One suite and what was answered to it; None is what was not measured.

    `unanswered` says why an item has no answer, by item; `broken` why the suite could not be
    measured any further.
    """

    questions: SuiteQuestions
    candidate: SuiteScore | None = None
    base: SuiteScore | None = None
    live: SuiteScore | None = None
    stability: Stability | None = None
    controls: Mapping[Model, Control] = Field(default_factory=dict)
    drift: float | None = None
    unanswered: Mapping[str, str] = Field(default_factory=dict)
    broken: str = ""

    def score(self, model: Model) -> SuiteScore | None:
        """What one model answered."""
        found: SuiteScore | None = getattr(self, model)
        return found

    @property
    def obstacle(self) -> str:
        """Why not everything could be measured; empty where it could."""
        if self.broken or not self.unanswered:
            return self.broken
        first, more = next(iter(self.unanswered.values())), len(self.unanswered) - 1
        return first + (f" (and {more} more)" if more else "")

    @property
    def nothing_left(self) -> bool:
        """Whether every question of the suite was left out."""
        return bool(self.questions.left_out) and not self.questions.items

    @property
    def silent(self) -> bool:
        """Whether some model has said nothing at all: more items would tell no more."""
        scores = (self.base, self.live, self.candidate)
        return any(
            score.results and not any(result.output.strip() for result in score.results)
            for score in scores
            if score
        )


class Evidence(Record):
    """All of it. `seed` fixes the order of drawing; nothing that a candidate answers may enter it.

    `live` is the name of the revision that serves, None while base itself does. Without a suite in
    each of the `required` roles nothing passes. `unlearning` is None where no fact was retracted.
    `twins` are pairs of models that are the same weights.
    """

    seed: str
    live: str | None
    suites: tuple[SuiteEvidence, ...]
    required: tuple[Role, ...] = (Role.REASONING,)
    unlearning: UnlearningEvidence | None = None
    twins: tuple[tuple[Model, Model], ...] = ()

    @property
    def asked(self) -> tuple[SuiteEvidence, ...]:
        """The suites that have a question left to ask."""
        return tuple(suite for suite in self.suites if not suite.nothing_left)


def by_item(score: SuiteScore | None) -> dict[str, ItemResult]:
    """The answers of a score by item."""
    return {result.id: result for result in score.results} if score else {}


@dataclass(frozen=True, slots=True)
class PairedOutcomes:
    """Candidate against baseline: one outcome in [-1, 1] for each cluster drawn, in their order."""

    outcomes: tuple[float, ...]
    clusters: tuple[tuple[SuiteItem, ...], ...]
    lost: tuple[SuiteItem, ...]
    won: int

    def items(self, clusters: int) -> int:
        """How many items the first so many clusters hold."""
        return sum(len(cluster) for cluster in self.clusters[:clusters])


def pair(
    clusters: Sequence[tuple[SuiteItem, ...]],
    candidate: Mapping[str, ItemResult],
    baseline: Mapping[str, ItemResult],
) -> PairedOutcomes:
    """Both on the same clusters; every item must have both answers."""
    gains = {
        item.id: int(candidate[item.id].correct) - int(baseline[item.id].correct)
        for cluster in clusters
        for item in cluster
    }
    return PairedOutcomes(
        outcomes=tuple(sum(gains[i.id] for i in c) / len(c) for c in clusters),
        clusters=tuple(clusters),
        lost=tuple(item for cluster in clusters for item in cluster if gains[item.id] < 0),
        won=sum(gain > 0 for gain in gains.values()),
    )


def above(
    clusters: Sequence[tuple[SuiteItem, ...]], candidate: Mapping[str, ItemResult], floor: float
) -> PairedOutcomes:
    """The candidate against a fixed share: each outcome is the cluster's rate less `floor`."""
    rates = [sum(candidate[item.id].correct for item in c) / len(c) for c in clusters]
    return PairedOutcomes(tuple(rate - floor for rate in rates), tuple(clusters), (), 0)


def by_stratum(pairs: PairedOutcomes) -> dict[str, tuple[float, ...]]:
    """The outcomes of each named stratum, in the order drawn."""
    strata: dict[str, list[float]] = {}
    for cluster, outcome in zip(pairs.clusters, pairs.outcomes, strict=True):
        if name := cluster[0].stratum:
            strata.setdefault(name, []).append(outcome)
    return {name: tuple(strata[name]) for name in sorted(strata)}


def failures(
    lost: Iterable[SuiteItem],
    candidate: Mapping[str, ItemResult],
    baseline: Mapping[str, ItemResult],
) -> tuple[FailedItem, ...]:
    """Newly failing items side by side."""
    return tuple(
        FailedItem(
            item=item.id,
            prompt=item.prompt,
            expected=item.answer,
            was=baseline[item.id].output,
            now=candidate[item.id].output,
        )
        for item in lost
    )


def rate(
    items: Iterable[SuiteItem], answers: Mapping[str, ItemResult], *, error: float = 0.05
) -> Rate | None:
    """The share of right answers among `items` with Wilson's interval (1927)."""
    right = [answers[item.id].correct for item in items if item.id in answers]
    if not right:
        return None
    n, share = len(right), sum(right) / len(right)
    z2 = NormalDist().inv_cdf(1 - error / 2) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * n)) / n) / (1 + z2 / n)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Rate(value=share, low=min(low, share), high=max(high, share), items=n)


def problem(evidence: SuiteEvidence, models: Sequence[Model]) -> str | None:
    """Why this evidence cannot be judged at all, or None; `models` are those needed."""
    asked = evidence.questions
    ids = [item.id for item in asked.items]
    if not ids:
        return "the suite holds no items"
    if twice := [name for name, count in Counter(ids).items() if count > 1]:
        return f"the item {twice[0]!r} is in the suite twice"
    for model in models:
        score = evidence.score(model)
        if score is None:
            return f"{model} was not measured"
        if found := _problem_of(score, asked, set(ids)):
            return f"{model} {found}"
    if evidence.stability and evidence.stability.lopsided:
        return (
            f"base, asked twice, lost {evidence.stability.worse} and won "
            f"{evidence.stability.better} answers: something other than the weights has changed"
        )
    return None


def _problem_of(score: SuiteScore, asked: SuiteQuestions, ids: set[str]) -> str | None:
    if (score.suite, score.role) != (asked.suite, asked.role):
        return f"was measured on {score.suite!r} ({score.role})"
    if score.fingerprint != asked.fingerprint:
        return "was measured on other items or with another grader: measure it again"
    names = [result.id for result in score.results]
    if len(set(names)) < len(names):
        return "answered an item twice"
    if unknown := next((name for name in names if name not in ids), None):
        return f"answered {unknown!r}, which the suite does not hold"
    if names and not any(r.correct or r.output.strip() for r in score.results):
        return f"answered nothing to all {len(names)} items: check the server"
    return None
