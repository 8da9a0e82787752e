"""No question is asked twice, whatever ended the first time; the time left is that of asking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from daemon.onboarding.asking import FIRST, ROUND, Asking, BaseAnswer, Interview


@dataclass
class Scripted:
    """Says every prompt back; each round takes ten seconds, the start a thousand."""

    engine: str = "scripted"
    asked: list[tuple[str, int]] = field(default_factory=list)
    now: float = 0.0
    dies_after: int = 10**9
    silent: frozenset[str] = frozenset()

    def prepare(self) -> None:
        self.now += 0.0 if self.asked else 1000.0

    def answer(
        self, prompts: Sequence[str], max_tokens: int, sample: int = 0
    ) -> Sequence[BaseAnswer | None]:
        if len(self.asked) >= self.dies_after:
            raise KeyboardInterrupt
        self.asked += [(prompt, sample) for prompt in prompts]
        self.now += 10.0
        return [
            None if p in self.silent else BaseAnswer(f"{p} {sample} {max_tokens}") for p in prompts
        ]


PROMPTS = [f"question {n}" for n in range(200)]


def texts(replies: Sequence[BaseAnswer | None]) -> list[str]:
    return [reply.text for reply in replies if reply]


def test_a_stopped_interview_asks_nothing_twice(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    stopped = Scripted(dies_after=FIRST + ROUND)
    with pytest.raises(KeyboardInterrupt):
        Interview(stopped, file).ask("facts", PROMPTS, 8)
    with file.open("a") as stream:
        stream.write('{"key": "torn')
    again = Scripted()
    said = texts(Interview(again, file).ask("facts", PROMPTS, 8))
    assert said == [f"{prompt} 0 8" for prompt in PROMPTS]
    assert len(again.asked) == len(PROMPTS) - len(stopped.asked)
    assert not set(again.asked) & set(stopped.asked)
    never = Scripted(dies_after=0)
    assert texts(Interview(never, file).ask("facts", PROMPTS, 8)) == said


def test_another_model_another_length_and_another_sample_are_asked_anew(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    Interview(Scripted(), file).ask("facts", PROMPTS[:3], 8)
    for base, tokens, sample in ((Scripted("other"), 8, 0), (Scripted(), 9, 0), (Scripted(), 8, 1)):
        Interview(base, file).ask("facts", PROMPTS[:3], tokens, sample)
        assert len(base.asked) == 3


def test_one_question_given_twice_is_asked_once_and_a_missing_answer_again(tmp_path: Path) -> None:
    base = Scripted(silent=frozenset({"b"}))
    interview = Interview(base, tmp_path / "answers.jsonl")
    assert [reply and reply.text for reply in interview.ask("x", ["a", "b", "a"], 8)] == [
        "a 0 8",
        None,
        "a 0 8",
    ]
    interview.ask("x", ["a", "b"], 8)
    assert base.asked == [("a", 0), ("b", 0), ("b", 0)]
    assert interview.asked == 3


def test_the_time_left_leaves_the_start_out(tmp_path: Path) -> None:
    base, heard = Scripted(), list[Asking]()
    Interview(base, tmp_path / "a", heard.append, lambda: base.now).ask("facts", PROMPTS, 8)
    assert [(one.done, one.seconds_left) for one in heard[:2]] == [
        (0, None),
        (FIRST, 10.0 / FIRST * (len(PROMPTS) - FIRST)),
    ]
    assert (heard[-1].done, heard[-1].total, heard[-1].seconds_left) == (200, 200, 0.0)
