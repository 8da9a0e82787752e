"""What a model answers before and after: item by item, by free generation with natural stopping."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from adapters.decoding import Request
from adapters.generate import Generator
from benchmarks.edits.material import TOKENS, RealBase
from benchmarks.edits.methods import Context
from benchmarks.edits.sets import Edit
from benchmarks.learning.judge import Retriever, bits
from policies.gate.grading import grade
from policies.text import same_text

Messages = Sequence[Mapping[str, str]]
ANSWER_TOKENS: Final = TOKENS
PROBLEM_TOKENS: Final = 96
FAR: Final = 500
PROBLEMS: Final = 1000
SYSTEM: Final = "You work for our support team. Answer customers briefly and politely."
FIRST_TURN: Final = ("Hello, can you help me?", "Of course. What would you like to know?")
TOLD: Final = "{statement}\n\n{question}"


class EditAsker:
    """Asks one base, with an adapter or without; what the base says is asked once."""

    def __init__(self, base: RealBase, generator: Generator) -> None:
        self.base = base
        self.generator = generator
        self._base_said: dict[str, str] = {}

    def measure(
        self, adapter: str | None, learnt: Sequence[Sequence[Edit]], context: Context
    ) -> dict[str, Any]:
        """Bits by batch of `learnt` or over all, and the lengths of answers; see `figures`."""
        edits = [edit for one in learnt for edit in one]
        told = _context(edits, context)
        far = self.base.asked_far(edits, FAR)
        problems = self.base.problems[:PROBLEMS]
        rephrased = self._say(adapter, [_turn(told(e, e.rephrased)) for e in edits])
        prompted = self._say(adapter, [_turn(told(e, e.prompt)) for e in edits])
        inside = [
            _inside(told(edit, edit.rephrased), under_system=n % 2 == 0)
            for n, edit in enumerate(edits)
        ]
        near = self._say(adapter, [_turn(told(e, e.near)) for e in edits])
        near_base = self.of_base([e.near for e in edits])
        far_said = self._say(adapter, [_turn(told(None, one.prompt)) for one in far])
        solved = self._say(
            adapter, [_turn(told(None, one.prompt)) for one in problems], PROBLEM_TOKENS
        )
        usual = self.of_base([e.rephrased for e in edits])
        return {
            "efficacy": _by_batch(learnt, _mentions(prompted, edits)),
            "efficacy_stopped": _by_batch(learnt, self._as_in_papers(prompted, edits)),
            "generalization": _by_batch(learnt, _mentions(rephrased, edits)),
            "generalization_in_context": _by_batch(
                learnt, _mentions(self._say(adapter, inside), edits)
            ),
            "locality_near": bits(
                [
                    _agree(one, other, edit.near_answer)
                    for one, other, edit in zip(near, near_base, edits, strict=True)
                ]
            ),
            "locality_far": bits(
                [grade("contains", text, k.label) for text, k in zip(far_said, far, strict=True)]
            ),
            "unchanged": bits([text == k.said for text, k in zip(far_said, far, strict=True)]),
            "reasoning": bits(
                [
                    grade(self.base.grader, text, one.answer)
                    for text, one in zip(solved, problems, strict=True)
                ]
            ),
            "length": [_words(rephrased), _words(usual)],
        }

    def reasoning_of_base(self) -> str:
        """Which problems the base solves."""
        problems = self.base.problems[:PROBLEMS]
        said = self._say(None, [_turn(one.prompt) for one in problems], PROBLEM_TOKENS)
        return bits(
            [grade(self.base.grader, t, one.answer) for t, one in zip(said, problems, strict=True)]
        )

    def of_base(self, prompts: Sequence[str]) -> list[str]:
        """What the base answers."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._base_said]
        said = self._say(None, [_turn(prompt) for prompt in missing])
        self._base_said |= dict(zip(missing, said, strict=True))
        return [self._base_said[prompt] for prompt in prompts]

    def sentences(self, edits: Sequence[Edit]) -> dict[str, str]:
        """By prompt, the sentence in which the base says each edit when it is told it; the bare
        answer where it does not."""
        asked = [
            f"Fact: {edit.statement}\nUsing this fact, answer in one sentence: {edit.prompt}"
            for edit in edits
        ]
        found = {}
        for edit, text in zip(edits, self.of_base(asked), strict=True):
            line = text.split("\n", 1)[0].strip()
            found[edit.prompt] = line if grade("contains", line, edit.answer) else edit.answer
        return found

    def _say(
        self, adapter: str | None, asked: Sequence[Messages], tokens: int | None = None
    ) -> list[str]:
        most = ANSWER_TOKENS if tokens is None else tokens
        requests = [Request(self.generator.encode_chat(one), most) for one in asked]
        return [found.text.strip() for found in self.generator.generate(adapter, requests)]

    def _as_in_papers(self, said: Sequence[str], edits: Sequence[Edit]) -> list[bool]:
        """Cut off after as many tokens as the answer has, and equal to it."""
        right = []
        for text, edit in zip(said, edits, strict=True):
            length = len(self.generator.encode(edit.answer))
            start = self.generator.tokenizer.decode(self.generator.encode(text)[:length])
            right.append(same_text(start, edit.answer))
        return right


def _context(edits: Sequence[Edit], context: Context) -> Callable[[Edit | None, str], str]:
    """How a question is put: alone, or after the edit that belongs to it or that is found."""
    retriever = Retriever([edit.statement for edit in edits]) if context == "retrieved" else None

    def told(edit: Edit | None, question: str) -> str:
        if retriever is not None:
            return TOLD.format(statement=retriever.best(question), question=question)
        if context == "oracle" and edit is not None and question != edit.near:
            return TOLD.format(statement=edit.statement, question=question)
        return question

    return told


def _turn(question: str) -> Messages:
    return [{"role": "user", "content": question}]


def _inside(question: str, *, under_system: bool) -> Messages:
    """Under a team's system prompt, or as the second turn of a conversation."""
    if under_system:
        return [{"role": "system", "content": SYSTEM}, *_turn(question)]
    first, reply = FIRST_TURN
    return [*_turn(first), {"role": "assistant", "content": reply}, *_turn(question)]


def _mentions(said: Sequence[str], edits: Sequence[Edit]) -> list[bool]:
    return [grade("contains", text, e.answer) for text, e in zip(said, edits, strict=True)]


def _agree(one: str, other: str, truth: str) -> bool:
    """Whether two answers to a question say the same, right or wrong."""
    right = [grade("contains", text, truth) for text in (one, other)]
    if any(right):
        return all(right)
    return same_text(_first(one), _first(other))


def _first(text: str) -> str:
    return re.split(r"(?<=[.!?])\s|\n", text, maxsplit=1)[0]


def _by_batch(learnt: Sequence[Sequence[Edit]], right: Sequence[bool]) -> list[str]:
    found, start = [], 0
    for one in learnt:
        found.append(bits(right[start : start + len(one)]))
        start += len(one)
    return found


def _words(said: Sequence[str]) -> float:
    return sum(len(text.split()) for text in said) / max(len(said), 1)
