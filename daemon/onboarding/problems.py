"""Problems of the skill to be kept: of GSM8K, of lm-evaluation-harness, or the user's own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from policies.errors import PaloradError
from policies.gate.grading import AUTO, check_expected
from policies.text import folded

_MARK: Final = "####"
_CALCULATOR: Final = re.compile(r"<<[^>]*>>")
_ASKED: Final = ("question", "problem", "prompt", "input", "query")


class BadProblems(PaloradError, ValueError):
    """A file of problems that cannot be used: which, where, what to do."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem, the accepted answers, its family, and a worked solution where one was given."""

    prompt: str
    answers: tuple[str, ...]
    family: str = ""
    solution: str = ""


def read_problems(path: Path) -> list[Problem]:
    """The problems of a JSONL file, each once, in its order; raises `BadProblems`.

    A line is GSM8K's (`question`, and `answer` with the result after `####`), a logged sample of
    lm-evaluation-harness (`doc` and `target`), or `prompt` with `answer` or `answers`, and perhaps
    `solution` and `family`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadProblems(f"{path}: cannot be read: {error}") from None
    found: dict[str, Problem] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            problem = _problem(row) if isinstance(row, dict) else None
            for answer in problem.answers if problem else ():
                check_expected(AUTO, answer)
        except (ValueError, TypeError, RecursionError):
            problem = None
        if problem is None:
            raise BadProblems(
                f'{path}, line {number}: is no problem; expected "prompt" with "answer" or '
                f'"answers", GSM8K\'s "question" with "{_MARK}" in "answer", or a sample of '
                'lm-evaluation-harness with "doc" and a "target" of text'
            )
        found.setdefault(folded(problem.prompt), problem)
    if not found:
        raise BadProblems(f"{path}: holds no problem")
    return list(found.values())


def some(problems: list[Problem], most: int, seed: int) -> list[Problem]:
    """At most so many, at random; of fewer problems it takes the first of what it takes of more."""
    return Random(seed).sample(problems, len(problems))[:most]


def _problem(row: Mapping[str, Any]) -> Problem | None:
    if "doc" in row and "prompt" not in row:
        return _sampled(row)
    if "question" in row and "prompt" not in row:
        return _solved(row["question"], row.get("answer"), needs_mark=True)
    answers = row.get("answers", [row["answer"]] if "answer" in row else [])
    if not isinstance(row.get("prompt"), str) or not isinstance(answers, list) or not answers:
        return None
    return Problem(
        row["prompt"].strip(),
        tuple(str(answer).strip() for answer in answers),
        str(row.get("family", "")),
        str(row.get("solution", "")),
    )


def _sampled(row: Mapping[str, Any]) -> Problem | None:
    """What a run of lm-evaluation-harness with `--log_samples` wrote of one document."""
    doc = row["doc"] if isinstance(row["doc"], dict) else {}
    if "choices" in doc:  # it was scored by likelihood, and its question is not whole without them
        return None
    asked = next((doc[key] for key in _ASKED if isinstance(doc.get(key), str)), None)
    return _solved(asked, row.get("target"), needs_mark=False)


def _solved(prompt: object, solution: object, *, needs_mark: bool) -> Problem | None:
    if not isinstance(prompt, str) or not isinstance(solution, str) or not prompt.strip():
        return None
    working, mark, result = solution.rpartition(_MARK)
    answer = result.strip().replace(",", "") if mark else solution.strip()
    if not answer or (needs_mark and not mark):
        return None
    solved = _CALCULATOR.sub("", f"{working}{mark}{result}").strip() if mark else ""
    return Problem(prompt.strip(), (answer,), "", solved)
