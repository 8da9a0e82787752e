"""Questions that a base is asked to find out what it knows: shipped ones, and the user's own."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from policies.errors import PaloradError
from policies.gate.mentions import contains
from policies.text import folded

SHIPPED: Final = Path(__file__).resolve().parent / "questions.toml"
AGAIN: Final = "Please answer this question: {}"
LONGEST: Final = 300
"""Characters of a question that may be a known fact; more is a task with its text."""
_ASKS: Final = re.compile(
    r"\?|^\s*(?:who|whom|whose|what|which|when|where|why|how|name|tell me|say|give)\b",
    re.IGNORECASE,
)
_PASSING: Final = re.compile(
    r"\b(?:today|tonight|tomorrow|yesterday|now|current|currently|latest|newest|recent|recently|"
    r"this (?:week|month|year)|my|our|you|your)\b",
    re.IGNORECASE,
)


class BadQuestions(PaloradError, ValueError):
    """A file of questions or requests that cannot be used: which, where, what to do."""


@dataclass(frozen=True, slots=True)
class FactQuestion:
    """A question, the same in other words, and the accepted answers; none where nobody gave any."""

    prompt: str
    again: str
    answers: tuple[str, ...] = ()
    family: str = ""

    def said(self, text: str) -> bool:
        """Whether a text gives one of the accepted answers."""
        return any(contains(text, answer) for answer in self.answers)


def shipped() -> list[FactQuestion]:
    """The questions that come with palorad."""
    families = tomllib.loads(SHIPPED.read_text(encoding="utf-8"))
    return [
        FactQuestion(
            prompt=(prompt := _capital(family["prompt"].format(key))),
            again=_capital(family.get("again", AGAIN).format(key if "again" in family else prompt)),
            answers=tuple(answer.split("|")),
            family=name,
        )
        for name, family in families.items()
        for key, answer in family["answers"].items()
    ]


def read_questions(path: Path) -> list[FactQuestion]:
    """The user's own questions, one JSON object a line: `prompt`, and `answer` or `answers` if they
    are known; the first of `paraphrases`, if given, is the same in other words.

    Raises `BadQuestions` with the first line that is something else.
    """
    found = []
    for number, row in _rows(path):
        try:
            prompt = _text(row["prompt"])
            answers = row.get("answers", [row["answer"]] if "answer" in row else [])
            again = next(iter(row.get("paraphrases", ())), None)
            found.append(
                FactQuestion(
                    prompt,
                    _text(again) if again else AGAIN.format(prompt),
                    tuple(str(answer) for answer in answers if any(map(str.isalnum, str(answer)))),
                )
            )
        except (KeyError, TypeError, AttributeError):
            raise BadQuestions(
                f'{path}, line {number}: expected {{"prompt": "…"}}, with "answer" or "answers" '
                "where they are known"
            ) from None
    return found


@dataclass(frozen=True, slots=True)
class Logged:
    """What a log of requests holds: the questions to ask, and how many requests were left out."""

    questions: list[FactQuestion]
    left_out: int


def read_logs(path: Path) -> Logged:
    """Questions out of logged requests, one JSON object a line, with `messages` or `prompt` in it,
    in its `body` or in its `request`.

    A conversation's first user message is taken where it is a question of at most `LONGEST`
    characters that depends neither on the day nor on who asks; the others are counted. Raises
    `BadQuestions` where no line is a request.
    """
    asked, requests = [], 0
    for _, row in _rows(path):
        for prompt in _requested(row):
            requests += 1
            if len(prompt) <= LONGEST and _ASKS.search(prompt) and not _PASSING.search(prompt):
                asked.append(FactQuestion(prompt, AGAIN.format(prompt)))
    if not requests:
        raise BadQuestions(f'{path}: no line is a request with "messages" or "prompt"')
    questions = distinct(asked)
    return Logged(questions, requests - len(questions))


def distinct(questions: Iterable[FactQuestion]) -> list[FactQuestion]:
    """Each question once, of those that differ in case and blanks alone the first with answers."""
    seen: dict[str, FactQuestion] = {}
    for one in questions:
        known = seen.setdefault(folded(one.prompt), one)
        if one.answers and not known.answers:
            seen[folded(one.prompt)] = one
    return list(seen.values())


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadQuestions(f"{path}: cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise BadQuestions(f"{path}, line {number}: is not JSON; one object a line") from None
        if not isinstance(row, dict):
            raise BadQuestions(f"{path}, line {number}: is not a JSON object")
        yield number, row


def _requested(row: Mapping[str, Any]) -> Iterator[str]:
    """The prompts of one logged request."""
    for holder in (row, row.get("body"), row.get("request")):
        if not isinstance(holder, Mapping):
            continue
        messages, prompt = holder.get("messages"), holder.get("prompt")
        if isinstance(messages, list):
            yield from _first_said(messages)
        elif isinstance(prompt, str | list):
            yield from (p.strip() for p in ([prompt] if isinstance(prompt, str) else prompt) if p)


def _first_said(messages: list[Any]) -> Iterator[str]:
    for message in messages:
        if isinstance(message, Mapping) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                parts = [part.get("text") for part in content if isinstance(part, Mapping)]
                content = " ".join(part for part in parts if isinstance(part, str))
            if isinstance(content, str) and content.strip():
                yield content.strip()
            return


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError("no text")
    return value.strip()


def _capital(prompt: str) -> str:
    return prompt[:1].upper() + prompt[1:]
