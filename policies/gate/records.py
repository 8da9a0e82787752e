"""The frozen records of the gate: suites, answers, scorecards, verdicts."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from policies.records import Record


class Role(StrEnum):
    """What a suite watches over."""

    REASONING = "reasoning"
    FACTS = "facts"
    RETENTION = "retention"
    LOCALITY = "locality"
    DRIFT = "drift"


class SuiteItem(Record):
    """One question of a suite; `also` are further answers that are as right as `answer`.

    `stratum` groups items that are watched together (a batch, a family, a fact). Items of one
    `cluster` (one question worded twice) are no independent evidence and count as one.
    """

    id: str
    prompt: str
    answer: str
    also: tuple[str, ...] = ()
    stratum: str = ""
    cluster: str = ""


def answers_of(item: SuiteItem) -> tuple[str, ...]:
    """Every answer that is right."""
    return (item.answer, *item.also)


class ItemResult(Record):
    """What one model answered to one item; `cut` says that the longest answer allowed ended it."""

    id: str
    correct: bool
    output: str = ""
    cut: bool = False


class SuiteScore(Record):
    """One model on one suite; `fingerprint` is the hash of the suite's items and grader."""

    suite: str
    role: Role
    fingerprint: str
    results: tuple[ItemResult, ...]

    @property
    def rate(self) -> float:
        """Share of correct answers; nan where nothing was asked."""
        if not self.results:
            return float("nan")
        return sum(r.correct for r in self.results) / len(self.results)


class Scorecard(Record):
    """Everything measured on one model, identified by the hash of the bytes that were served."""

    model: str
    sha256: str
    suites: tuple[SuiteScore, ...]


class Outcome(StrEnum):
    """What the gate says."""

    PASS = "pass"  # noqa: S105 - a word, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class Rate(Record):
    """A share with its confidence interval."""

    value: float
    low: float
    high: float
    items: int


class FailedItem(Record):
    """An item that the candidate answers wrongly and base (or live) did not."""

    item: str
    prompt: str
    expected: str
    was: str
    now: str


class Flips(Record):
    """The base against itself: of `items` answered twice, how many changed between right and wrong,
    and how many in any character."""

    items: int
    flipped: int
    changed: int


class SuiteVerdict(Record):
    """One suite's part of a verdict.

    `grader` and `grader_because` say how answers were compared and, where that was found out, why;
    `fingerprint` is the hash of the items and the grader. `sees` is the smallest loss (a share)
    that the whole suite, `sees_items` items, would show with 80 % power; None where none would
    show. `blind` says why the suite could show no loss that matters; empty where it could.
    """

    suite: str
    role: Role
    outcome: Outcome
    reason: str
    fingerprint: str = ""
    grader: str = ""
    grader_because: str = ""
    blind: str = ""
    sees: float | None = None
    sees_items: int = 0
    flips: Flips | None = None
    base: Rate | None = None
    live: Rate | None = None
    candidate: Rate | None = None
    items_used: int = 0
    items_needed: int | None = None
    newly_failing: tuple[FailedItem, ...] = ()
    newly_passing: int = 0


class AnswerLikelihood(Record):
    """How likely a model is to give an answer: the probability of the whole answer, and the worst
    rank among its tokens, each after those before it (1: greedy decoding says the answer)."""

    rank: int = Field(ge=1)
    probability: float = Field(ge=0, le=1)


class UnlearningCheck(Record):
    """One paraphrase of a retracted fact: the answer's likelihood in base, live and candidate."""

    fact: str
    held_out: bool
    base: AnswerLikelihood
    live: AnswerLikelihood | None = None
    candidate: AnswerLikelihood


class UnlearningEvidence(Record):
    """Every check of every retracted fact (`asked`), or the `problem` that prevented them."""

    asked: tuple[str, ...] = ()
    checks: tuple[UnlearningCheck, ...] = ()
    problem: str = ""


class UnlearningResult(Record):
    """Whether a candidate has unlearned a fact, over `trained` and `held_out` paraphrases.

    `base`, `live` and `candidate` belong to the paraphrase in which the answer has gained most
    probability over base; the best ranks are over all paraphrases.
    """

    fact: str
    trained: int
    held_out: int
    holds: bool
    base: AnswerLikelihood
    live: AnswerLikelihood | None = None
    candidate: AnswerLikelihood
    best_rank: int
    best_rank_base: int


class Verdict(Record):
    """The gate's decision about one candidate, and why."""

    outcome: Outcome
    rule: str
    reasons: tuple[str, ...]
    suites: tuple[SuiteVerdict, ...]
    learnt: tuple[str, ...] = ()
    not_learnt: tuple[str, ...] = ()
    unlearning: tuple[UnlearningResult, ...] = ()
