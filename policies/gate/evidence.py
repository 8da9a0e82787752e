"""What the gate judges: who answered which items, laid side by side."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Final

import numpy as np
from pydantic import Field

from policies.gate.records import Failure, ItemResult, Rate, Role, Scorecard, SuiteItem, SuiteScore
from policies.gate.sequential import Floats
from policies.records import Record, content_id

# Two runs of the same weights that differ in one direction with this probability by chance are no
# chance: something but the weights has changed between them.
LOPSIDED: Final = 0.001


class Stability(Record):
    """The reference against itself on items chosen beforehand: `worse` and `better` the second
    time, of `items` asked twice.
    """

    items: int = Field(ge=1)
    worse: int = Field(ge=0)
    better: int = Field(ge=0)

    @property
    def flips(self) -> float:
        """Share of items whose answer changed between being right and being wrong."""
        return (self.worse + self.better) / self.items

    @property
    def lopsided(self) -> bool:
        """Whether the two runs differ by more than chance: an exact two-sided sign test."""
        changed = self.worse + self.better
        tail = sum(math.comb(changed, k) for k in range(min(self.worse, self.better) + 1))
        return bool(2 * tail < LOPSIDED * 2**changed)

    def luck(self, items: int, error: float) -> float:
        """How far one measurement of `items` items may lie from the weights' own score.

        Exceeded with probability `error`; each answer's variance is half its chance to flip.
        """
        return NormalDist().inv_cdf(1 - error) * math.sqrt(self.flips / 2 / items)


class SuiteQuestions(Record):
    """A suite as the gate sees it: its items in any order, and its own margin if it has one.

    `complete` says that the items are all there are and no sample: once every one is answered,
    the drop that is seen is the drop, and nothing is left to be inferred.
    """

    suite: str
    role: Role
    fingerprint: str
    items: tuple[SuiteItem, ...]
    margin: float | None = Field(default=None, gt=0, lt=1)
    complete: bool = False


class SuiteEvidence(Record):
    """One suite and what was answered to it; None is what was not measured."""

    questions: SuiteQuestions
    candidate: SuiteScore | None = None
    reference: SuiteScore | None = None
    live: SuiteScore | None = None
    stability: Stability | None = None
    drift: float | None = None


class Evidence(Record):
    """All of it. `seed` fixes the order of drawing; nothing that a candidate answers may enter it.

    `live` is the name of the revision that serves, None while the reference itself does. Without
    a suite in each of the `required` roles nothing passes.
    """

    seed: str
    live: str | None
    suites: tuple[SuiteEvidence, ...]
    required: tuple[Role, ...] = (Role.REASONING,)


def gather(
    questions: Iterable[SuiteQuestions],
    *,
    candidate: Scorecard,
    reference: Scorecard,
    live: Scorecard | None,
    stability: Mapping[str, Stability] | None = None,
    drift: Mapping[str, float] | None = None,
    required: tuple[Role, ...] = (Role.REASONING,),
) -> Evidence:
    """The evidence in scorecards; `stability` and `drift` are by suite."""

    def score(card: Scorecard | None, suite: str) -> SuiteScore | None:
        return next((s for s in card.suites if s.suite == suite), None) if card else None

    return Evidence(
        seed=candidate.sha256,
        live=live.model if live else None,
        suites=tuple(
            SuiteEvidence(
                questions=asked,
                candidate=score(candidate, asked.suite),
                reference=score(reference, asked.suite),
                live=score(live, asked.suite),
                stability=(stability or {}).get(asked.suite),
                drift=(drift or {}).get(asked.suite),
            )
            for asked in questions
        ),
        required=required,
    )


@lru_cache(maxsize=64)
def draw_order(items: tuple[SuiteItem, ...], seed: str) -> tuple[tuple[SuiteItem, ...], ...]:
    """The clusters of a suite in a random order that depends on `seed` and ids alone."""
    clusters: dict[str, list[SuiteItem]] = {}
    for item in items:
        clusters.setdefault(item.cluster or item.id, []).append(item)
    names = sorted(clusters, key=lambda name: (content_id(seed, name), name))
    return tuple(tuple(sorted(clusters[name], key=lambda item: item.id)) for name in names)


def draw(
    order: Sequence[tuple[SuiteItem, ...]], answered: Mapping[str, ItemResult]
) -> tuple[tuple[SuiteItem, ...], ...]:
    """The clusters drawn so far: up to the last that has an answer."""
    last = max(
        (n for n, cluster in enumerate(order, start=1) if any(i.id in answered for i in cluster)),
        default=0,
    )
    return tuple(order[:last])


def by_item(score: SuiteScore | None) -> dict[str, ItemResult]:
    """The answers of a score by item."""
    return {result.id: result for result in score.results} if score else {}


@dataclass(frozen=True, slots=True)
class PairedOutcomes:
    """Candidate against baseline: one outcome in [-1, 1] for each cluster drawn, in their order."""

    outcomes: Floats
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
        outcomes=np.array([np.mean([gains[i.id] for i in c]) for c in clusters], dtype=np.float64),
        clusters=tuple(clusters),
        lost=tuple(item for cluster in clusters for item in cluster if gains[item.id] < 0),
        won=sum(gain > 0 for gain in gains.values()),
    )


def above(
    clusters: Sequence[tuple[SuiteItem, ...]], candidate: Mapping[str, ItemResult], floor: float
) -> PairedOutcomes:
    """The candidate against a fixed share: each outcome is the cluster's rate less `floor`."""
    rates = [np.mean([candidate[item.id].correct for item in cluster]) for cluster in clusters]
    return PairedOutcomes(np.array(rates, dtype=np.float64) - floor, tuple(clusters), (), 0)


def by_stratum(pairs: PairedOutcomes) -> dict[str, Floats]:
    """The outcomes of each named stratum, in the order drawn."""
    names = np.array([cluster[0].stratum for cluster in pairs.clusters], dtype=object)
    return {str(name): pairs.outcomes[names == name] for name in sorted(set(names)) if name}


def failures(
    lost: Iterable[SuiteItem],
    candidate: Mapping[str, ItemResult],
    baseline: Mapping[str, ItemResult],
) -> tuple[Failure, ...]:
    """Newly failing items side by side."""
    return tuple(
        Failure(
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


def problem(evidence: SuiteEvidence, names: Sequence[str]) -> str | None:
    """Why this evidence cannot be judged at all, or None; `names` are the scores needed."""
    asked = evidence.questions
    ids = [item.id for item in asked.items]
    if not ids:
        return "the suite holds no items"
    if twice := [name for name, count in Counter(ids).items() if count > 1]:
        return f"the item {twice[0]!r} is in the suite twice"
    for name in names:
        score: SuiteScore | None = getattr(evidence, name)
        if score is None:
            return f"the {name} was not measured"
        if found := _problem_of(score, asked, set(ids)):
            return f"the {name} {found}"
    if evidence.stability and evidence.stability.lopsided:
        return (
            f"the reference asked twice lost {evidence.stability.worse} and won "
            f"{evidence.stability.better} answers: something but the weights has changed"
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
