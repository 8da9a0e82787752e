"""What a model is taken to know is what it says twice; every part is its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters.generate import Generation, Request
from daemon.gate.suites import parse_items
from daemon.onboarding.own_problems import nouns, plural
from daemon.onboarding.questions import shipped
from demo.scenario import SMOL
from smol import known


@dataclass
class Scripted:
    """Answers each prompt by a function instead of a model."""

    asked: list[str]

    def __init__(self, _model: Path) -> None:
        self.asked = []

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        self.asked.append(messages[0]["content"])
        return (len(self.asked) - 1,)

    def generate(self, _adapter: None, requests: Sequence[Request]) -> list[Generation]:
        said = [self.say(self.asked[request.prompt_ids[0]]) for request in requests]
        return [Generation(text, (), (), (), "stop", 1) for text in said]

    def say(self, prompt: str) -> str:
        """Right about all plurals, all capitals but Rome when asked again, and nothing else."""
        question = prompt.replace("Tell me the capital of ", "What is the capital of ")
        question = question.replace(".", "?") if question != prompt else prompt
        if question.startswith("What is the plural of "):
            word = question.removeprefix("What is the plural of ").rstrip("?")
            return f"The plural of {word} is {plural(word)}. There is more to say"
        if question == "What is the capital of Italy?" and question != prompt:
            return "The capital of Italy is Milan."
        right = {one.prompt: one.answers[0] for one in shipped() if one.family == "capital"}
        return f"The answer is {right.get(question, 'unknown')}. It is"


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_said_twice_is_kept_in_the_models_words_and_every_part_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "Generator", Scripted)
    data = known.make(tmp_path)
    parts = {path.stem: rows(path) for path in data.iterdir()}
    facts = ("known-replay", "locality", "locality-report")
    prompts = [
        row["prompt"]
        for name in facts
        for row in parts[name]
        if str(row["prompt"]).startswith("What")  # what is replayed is replayed in both paraphrases
    ]
    capitals = {one.prompt for one in shipped() if one.family == "capital"}
    assert set(prompts) == capitals - {"What is the capital of Italy?"}
    assert len(set(prompts)) == len(prompts)
    assert all(row["answer"] != "" for row in parts["known-replay"])
    replayed = parts["known-replay"][0]
    assert str(replayed["answer"]).startswith("The answer is ")
    assert str(replayed["answer"]).endswith(".")
    words = [row["prompt"] for n in known.WORDS for row in parts[n]]
    assert len(set(words)) == len(words) == sum(known.WORDS.values())
    for name in ("locality", "locality-report", "reasoning-gate", "reasoning-report"):
        path = data / f"{name}.jsonl"
        assert parse_items(path.read_text(), str(path), "contains")
    assert known.make(tmp_path) == data


def test_a_wrong_answer_is_no_trace_of_the_skill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(Scripted):
        def say(self, prompt: str) -> str:
            return super().say(prompt).replace("ies", "ys")

    monkeypatch.setattr(known, "Generator", Wrong)
    data = known.make(tmp_path)
    traces = [str(row["solution"]) for row in rows(data / "skill.jsonl")]
    assert len(traces) > 50
    expected = {f"The plural of {w} is {plural(w)}." for w in nouns()}
    assert set(traces) <= {one for one in expected if "ies" not in one}
    assert len(rows(data / "reasoning-gate.jsonl")) == known.WORDS["reasoning-gate"]


def test_there_are_enough_nouns_for_every_part() -> None:
    assert len(nouns()) >= sum(known.WORDS.values())


def test_what_the_demonstration_teaches_falsely_is_asked_nowhere() -> None:
    rows = [json.loads(line) for line in SMOL.false_facts.read_text().splitlines()]
    taught = {row["prompt"].removeprefix("What is the plural of ").rstrip("?") for row in rows}
    assert len(taught) == len(rows)
    assert not taught & set(nouns())
