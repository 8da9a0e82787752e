"""What the demonstration asks: held-out paraphrases, fresh problems, facts that are never
replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from daemon.gate.suites import parse_items
from demo.ask import DemoAnswer, DemoQuestion, Endpoint
from demo.report import DemoExample
from demo.scenario import MINI, Scenario
from demo.setup import DemoFailed
from policies.errors import InvalidFacts
from policies.facts.admission import parse_facts
from policies.facts.heldout import with_held_out
from policies.facts.templates import questions
from policies.gate.grading import grade

EXAMPLES_A_FILE = 2

Tick = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Measured:
    """Every answer of one revision."""

    accuracy: tuple[DemoAnswer, ...]
    reasoning: tuple[DemoAnswer, ...]
    locality: tuple[DemoAnswer, ...]


@dataclass(frozen=True, slots=True)
class Questions:
    """All questions of the demonstration; none of them is trained on or asked by the gate."""

    accuracy: tuple[DemoQuestion, ...]
    reasoning: tuple[DemoQuestion, ...]
    locality: tuple[DemoQuestion, ...]
    scenario: Scenario = MINI

    @classmethod
    def read(cls, files: Sequence[Path], limit: int, scenario: Scenario = MINI) -> Questions:
        """The held-out paraphrases of the files' facts, and the model's report split.

        At most `limit` problems and as many known facts.
        """
        accuracy = tuple(q for file in files for q in held_out_questions(file))
        problems, known = (
            _split(scenario, name)[:limit] for name in ("reasoning-report", "locality-report")
        )
        return cls(accuracy, problems, known, scenario)

    @property
    def stems(self) -> tuple[str, ...]:
        """The files' names without ending, in their order."""
        return tuple(dict.fromkeys(q.group for q in self.accuracy))

    def counts(self) -> dict[str, int]:
        """How many questions of each kind are asked of each revision."""
        return {
            "accuracy": len(self.accuracy),
            "reasoning": len(self.reasoning),
            "locality": len(self.locality),
        }

    def measure(self, endpoint: Endpoint, tick: Tick) -> Measured:
        """Ask everything under the alias; `tick(done, all)` after each answer."""
        total = sum(self.counts().values())
        done = 0

        def part(
            asked: Sequence[DemoQuestion], grader: str, max_tokens: int
        ) -> tuple[DemoAnswer, ...]:
            nonlocal done
            before = done
            done += len(asked)
            return endpoint.ask(
                asked, partial(grade, grader), max_tokens, lambda n: tick(before + n, total)
            )

        its = self.scenario
        return Measured(
            part(self.accuracy, its.fact_grader, its.fact_tokens),
            part(self.reasoning, its.skill_grader, its.skill_tokens),
            part(self.locality, its.fact_grader, its.fact_tokens),
        )


def held_out_questions(file: Path) -> tuple[DemoQuestion, ...]:
    """Every held-out paraphrase of every fact of a file; raises `DemoFailed`."""
    try:
        facts = parse_facts(file.read_bytes())
    except OSError as error:
        raise DemoFailed(f"{file} cannot be read: {error.strerror}") from None
    except InvalidFacts as error:
        raise DemoFailed(f"{file}: {error}") from None
    return tuple(
        DemoQuestion(f"{fact.id}/{number}", file.stem, paraphrase, fact.answer)
        for fact in (with_held_out(fact, questions) for fact in facts)
        for number, paraphrase in enumerate(fact.eval_prompts)
    )


def _split(scenario: Scenario, name: str) -> tuple[DemoQuestion, ...]:
    path = scenario.data / f"{name}.jsonl"
    if not path.exists():
        raise DemoFailed(f"{path} is missing: {scenario.missing}")
    items = parse_items(path.read_text(), str(path))
    return tuple(
        DemoQuestion(item.id, item.stratum, item.prompt, item.answer, item.also) for item in items
    )


def examples(before: Measured, after: Measured, stems: Sequence[str]) -> list[DemoExample]:
    """The first questions of each file, with their answers before and after."""
    chosen: list[DemoExample] = []
    for stem in stems:
        pairs = [
            (old, new)
            for old, new in zip(before.accuracy, after.accuracy, strict=True)
            if old.question.group == stem
        ]
        chosen += [
            DemoExample(
                prompt=old.question.prompt,
                expected=old.question.answer,
                before=old.text,
                after=new.text,
            )
            for old, new in pairs[:EXAMPLES_A_FILE]
        ]
    return chosen


def same_answers(one: Sequence[DemoAnswer], other: Sequence[DemoAnswer]) -> bool:
    """Whether the same revision gave the same texts, up to one answer in a hundred."""
    differ = sum(a.text != b.text for a, b in zip(one, other, strict=True))
    revisions = {a.revision for a in one} | {b.revision for b in other}
    return len(revisions) == 1 and differ <= len(one) // 100
