"""What a model still knows and can do, item by item, by free generation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from adapters.generate import Generator
from benchmarks.learning.bases import MINI
from benchmarks.learning.batches import Asked, FactBatch, Purpose
from mini import reasoning, world
from mini.check import Question, answered, ask
from mini.splits import Split
from mini.world import Form
from policies.grading import final
from policies.wordings import relations

_SOLUTION_TOKENS = 160


@dataclass(frozen=True)
class Judge:
    """Problems and known facts that no training and no probe has seen.

    Selection and report have none in common.
    """

    problems: Sequence[reasoning.Problem]
    known: Sequence[Question]

    @classmethod
    def of(cls, purpose: Purpose, problems: int, seed: int) -> Judge:
        """`problems` fresh problems, and the known facts kept for this purpose."""
        if purpose == "selection":
            lines = (MINI / "data/locality.jsonl").read_text("utf-8").splitlines()
            known = [Question(r["prompt"], r["answer"], Form.CHAT) for r in map(json.loads, lines)]
            return cls(reasoning.distinct(Split.SELECTION, problems, seed), known)
        facts = [fact for fact in world.known() if fact.split is Split.REPORT]
        known = [
            Question(relations()[f.relation].questions(f.subject)[0], f.answer, Form.CHAT)
            for f in facts
        ]
        return cls(reasoning.distinct(Split.REPORT, problems, seed), known)

    def keeps(self, generator: Generator, adapter: str | None) -> dict[str, str]:
        """`reasoning` and `locality`: a 1 for each item answered right, else a 0."""
        asked = [Question(p.prompt, p.answer, Form.CHAT) for p in self.problems]
        said = ask(generator, adapter, asked, _SOLUTION_TOKENS)
        right = [final(text, p.answer) for text, p in zip(said, self.problems, strict=True)]
        return {
            "reasoning": bits(right),
            "locality": bits(answered(generator, adapter, self.known)),
        }


def recalls(
    generator: Generator, adapter: str | None, learnt: Sequence[FactBatch], *, told: bool = False
) -> dict[str, list[str]]:
    """`recall` and `recall_far`: a row of 1 and 0 for each batch.

    `told` puts the fact as a sentence in front of the question.
    """
    return {
        "recall": [_right(generator, adapter, one.near, told) for one in learnt],
        "recall_far": [_right(generator, adapter, one.far, told) for one in learnt],
    }


def _right(generator: Generator, adapter: str | None, asked: Sequence[Asked], told: bool) -> str:
    forms = (Form.CHAT, Form.PLAIN)
    questions = [
        Question(f"{a.statement} {a.prompt}" if told else a.prompt, a.answer, forms[n % 2])
        for n, a in enumerate(asked)
    ]
    return bits(answered(generator, adapter, questions))


def bits(right: Sequence[bool]) -> str:
    """One character an item."""
    return "".join("1" if one else "0" for one in right)
