"""What a model still knows and can do, item by item, by free generation."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

from adapters.generate import Generator
from benchmarks.learning.bases import Base
from benchmarks.learning.batches import AskedParaphrase, FactBatch, Purpose
from mini import reasoning
from mini.check import CheckQuestion, answered, ask
from mini.splits import Split
from mini.world import Form
from policies.facts.templates import recognise, relations
from policies.gate.grading import final

_SOLUTION_TOKENS = 160
Context = Literal["none", "oracle", "retrieved"]


@dataclass(frozen=True)
class Judge:
    """Problems and known facts that no training and no probe has seen.

    Selection and report have none in common.
    """

    problems: Sequence[reasoning.Problem]
    known: Sequence[CheckQuestion]
    known_ood: Sequence[CheckQuestion]
    """The same facts in OOD paraphrases: how well the base itself understands those."""

    @classmethod
    def of(cls, base: Base, purpose: Purpose, problems: int, seed: int) -> Judge:
        """`problems` fresh problems, and the known facts kept for this purpose."""
        split = Split.SELECTION if purpose == "selection" else Split.REPORT
        rows = base.asked(report=purpose == "report")
        known = [CheckQuestion(row["prompt"], row["answer"], Form.CHAT) for row in rows]
        rng = random.Random(f"far:{purpose}:{seed}")
        ood = [
            CheckQuestion(rng.choice(relations()[named[0]].ood(named[1])), row["answer"], form)
            for row, form in zip(rows, cycle((Form.CHAT, Form.PLAIN)), strict=False)
            if (named := recognise(row["prompt"])) is not None
        ]
        return cls(reasoning.distinct(split, problems, seed, base.asked_skill), known, ood)

    def keeps(self, generator: Generator, adapter: str | None) -> dict[str, str]:
        """`reasoning`, `locality` and `locality_ood`: a 1 for each right answer, else a 0."""
        asked = [CheckQuestion(p.prompt, p.answer, Form.CHAT) for p in self.problems]
        said = ask(generator, adapter, asked, _SOLUTION_TOKENS)
        right = [final(text, p.answer) for text, p in zip(said, self.problems, strict=True)]
        return {
            "reasoning": bits(right),
            "locality": bits(answered(generator, adapter, self.known)),
            "locality_ood": bits(answered(generator, adapter, self.known_ood)),
        }


class Retriever:
    """BM25 (Robertson and Walker, 1994) over the sentences of all facts learnt so far."""

    def __init__(self, statements: Sequence[str], k1: float = 1.2, b: float = 0.75) -> None:
        self._statements = list(dict.fromkeys(statements))
        self._counts = [Counter(_words(text)) for text in self._statements]
        sizes = [counts.total() for counts in self._counts]
        self._norms = [k1 * (1 - b + b * size * len(sizes) / sum(sizes)) for size in sizes]
        found_in = Counter(word for counts in self._counts for word in counts)
        total = len(self._statements)
        self._rarity = {w: math.log(1 + (total - n + 0.5) / (n + 0.5)) for w, n in found_in.items()}
        self._k1 = k1

    def best(self, question: str) -> str:
        """The sentence that fits a question best."""
        words = set(_words(question))

        def score(number: int) -> float:
            counts, norm = self._counts[number], self._norms[number]
            return sum(
                self._rarity[w] * counts[w] * (self._k1 + 1) / (counts[w] + norm)
                for w in words & counts.keys()
            )

        return self._statements[max(range(len(self._statements)), key=score)]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def accuracies(
    generator: Generator,
    adapter: str | None,
    learnt: Sequence[FactBatch],
    context: Context = "none",
) -> dict[str, list[str]]:
    """`accuracy` on held-out paraphrases and `accuracy_ood`: a string of 1 and 0 for each batch.

    With a `context` the right sentence, or the one retrieved, stands before the question.
    """
    retriever = None
    if context == "retrieved":
        retriever = Retriever([asked.statement for one in learnt for asked in one.near])

    def put(asked: AskedParaphrase) -> str:
        if context == "none":
            return asked.prompt
        found = retriever.best(asked.prompt) if retriever else asked.statement
        return f"{found} {asked.prompt}"

    def right(questions: Sequence[AskedParaphrase]) -> str:
        forms = (Form.CHAT, Form.PLAIN)
        made = [CheckQuestion(put(a), a.answer, forms[n % 2]) for n, a in enumerate(questions)]
        return bits(answered(generator, adapter, made))

    return {
        "accuracy": [right(one.near) for one in learnt],
        "accuracy_ood": [right(one.ood) for one in learnt],
    }


def bits(right: Sequence[bool]) -> str:
    """One character an item."""
    return "".join("1" if one else "0" for one in right)
