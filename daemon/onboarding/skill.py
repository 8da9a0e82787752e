"""The skill to be kept: what the base makes of its problems, and its suites."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from daemon.onboarding.asking import BaseAnswer
from daemon.onboarding.known_facts import Ask, suite_line
from daemon.onboarding.problems import Problem
from policies.gate.fitting import choose_grader, fitting_sample
from policies.gate.grading import GRADERS, normalise
from policies.gate.records import ItemResult, Role, SuiteItem
from policies.onboarding.splitting import SplitKey, share_out
from policies.records import content_id

SHARES: Final = {"skill": 0.3, "reasoning-gate": 0.6, "reasoning-report": 0.1}
SEED: Final = 5
FEW_TRACES: Final = 50
WORTH: Final = 0.3
"""A family of palorad's own problems of which the base solves less is left out."""
_TOLERATED: Final = 0.05


@dataclass(frozen=True, slots=True)
class Attempt:
    """A problem and what the base made of it."""

    problem: Problem
    reply: BaseAnswer

    @property
    def item(self) -> SuiteItem:
        """The problem as a suite has it."""
        answer, *also = self.problem.answers
        return SuiteItem(
            id=content_id(self.problem.prompt),
            prompt=self.problem.prompt,
            answer=answer,
            also=tuple(also),
            stratum=self.problem.family,
        )

    def right(self, grader: str) -> bool:
        """Whether it is solved, by this grader."""
        return any(GRADERS[grader](self.reply.text, said) for said in self.problem.answers)

    def result(self, grader: str) -> ItemResult:
        """The answer as the gate grades it."""
        return ItemResult(
            id=self.item.id,
            correct=self.right(grader),
            output=self.reply.text,
            cut=self.reply.cut,
        )


@dataclass(frozen=True, slots=True)
class Skill:
    """The problems in disjoint parts, the grader that fits the base's answers, and why that one.

    `left_out` are families of which the base solves too little, with its share.
    """

    parts: dict[str, list[Attempt]]
    grader: str
    because: str
    left_out: dict[str, float]


def attempted(ask: Ask, problems: Sequence[Problem]) -> list[Attempt]:
    """Every problem to which the base gave an answer."""
    replies = ask("problems", [one.prompt for one in problems], 0)
    return [
        Attempt(one, reply)
        for one, reply in zip(problems, replies, strict=True)
        if reply is not None
    ]


def laid_out(
    attempts: Sequence[Attempt],
    grader: str | None = None,
    *,
    choosy: bool = False,
    seed: int = SEED,
) -> Skill:
    """Traces, suite and report; the grader is found unless it is given.

    `choosy` leaves families out that the base cannot do.
    """
    chosen, because = (grader, "as you said") if grader else _fitting(attempts)
    left_out = _too_hard(attempts, chosen) if choosy else {}
    kept = [one for one in attempts if one.problem.family not in left_out]

    def describe(one: Attempt) -> SplitKey:
        return SplitKey(one.problem.family, one.problem.prompt, one.problem.answers[0])

    return Skill(share_out(kept, SHARES, describe, Random(seed)), chosen, because, left_out)


def trace_lines(skill: Skill) -> list[dict[str, object]]:
    """Lines for probe.skill and train.replay.reasoning: solutions in the base's own words.

    Where it solves fewer than `FEW_TRACES`, those that came with the problems are added.
    """
    own: list[dict[str, object]] = [
        {"prompt": one.problem.prompt, "solution": one.reply.text}
        for one in skill.parts["skill"]
        if one.right(skill.grader) and not one.reply.cut
    ]
    if len(own) >= FEW_TRACES:
        return own
    taken = {line["prompt"] for line in own}
    given: list[dict[str, object]] = [
        {"prompt": one.problem.prompt, "solution": one.problem.solution}
        for one in skill.parts["skill"]
        if one.problem.solution and one.problem.prompt not in taken
    ]
    return [*own, *given]


def suite_lines(attempts: Sequence[Attempt]) -> list[dict[str, object]]:
    """Lines of a suite of problems."""
    return [
        suite_line(one.problem.prompt, one.problem.answers, one.problem.family) for one in attempts
    ]


def _fitting(attempts: Sequence[Attempt]) -> tuple[str, str]:
    """The gate's own choice for solutions, or `contains` where a short answer stands in words."""
    items = tuple(one.item for one in attempts)
    by_id = {one.item.id: one for one in attempts}
    sample = fitting_sample(items, "init")
    results = {item.id: by_id[item.id].result("exact") for item in sample}
    choice = choose_grader(Role.REASONING, sample, results)
    if all(normalise(item.answer).replace(" ", "").isdigit() for item in sample):
        return choice.grader, choice.because
    right = sum(by_id[item.id].right(choice.grader) for item in sample)
    contained = sum(by_id[item.id].right("contains") for item in sample)
    if contained - right > _TOLERATED * len(sample):
        because = f"of {len(sample)} answers, {contained} right by 'contains', {right} by "
        return "contains", f"{because}{choice.grader!r}"
    return choice.grader, choice.because


def _too_hard(attempts: Sequence[Attempt], grader: str) -> dict[str, float]:
    solved: dict[str, list[bool]] = defaultdict(list)
    for one in attempts:
        solved[one.problem.family].append(one.right(grader))
    shares = {family: sum(right) / len(right) for family, right in solved.items()}
    return {family: share for family, share in shares.items() if share < WORTH}
