"""Suites of questions that the gate asks: read, checked, fingerprinted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

from policies.errors import PaloradError, Ungradable, UnknownGrader
from policies.gate.grading import check_expected
from policies.gate.records import Role, SuiteItem, answers_of
from policies.records import Record, content_id

_GSM8K_MARK: Final = "####"
_NATIVE: Final = frozenset({"id", "prompt", "answer", "answers", "family"})
_SHOWN: Final = 5


class BadSuite(PaloradError, ValueError):
    """A suite that cannot be asked: what, in which file and line, what to do."""

    final = True


class PromptForm(StrEnum):
    """How a question is put to the model."""

    CHAT = "chat"
    PLAIN = "plain"


class Suite(Record):
    """Questions with their grader; two suites with one fingerprint measure the same thing."""

    name: str
    role: Role
    grader: str
    form: PromptForm
    max_tokens: int
    items: tuple[SuiteItem, ...]
    forms: tuple[PromptForm, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits over the items, the grader, the form and the output limit.

        The order of the items does not count; whatever can change a measured answer does.
        """
        return self._hash(
            [self.grader, str(self.form), self.max_tokens],
            [
                [item.id, item.prompt, item.answer, str(self.form_of(number)), *item.also]
                for number, item in enumerate(self.items)
            ],
        )

    @cached_property
    def questions(self) -> str:
        """Sixteen hex digits over what is asked, without how it is graded: answers are kept by it,
        so that another grader reads the same answers.
        """
        return self._hash(
            ["asked", str(self.form), self.max_tokens],
            [
                [item.id, item.prompt, str(self.form_of(number))]
                for number, item in enumerate(self.items)
            ],
        )

    def graded_by(self, grader: str) -> Suite:
        """The same questions with another grader."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return Suite(**fields | {"grader": grader})

    @staticmethod
    def _hash(head: list[object], rows: list[list[str]]) -> str:
        digest = hashlib.sha256(json.dumps(head).encode())
        for line in sorted(map(json.dumps, rows)):
            digest.update(line.encode() + b"\n")
        return digest.hexdigest()[:16]

    def form_of(self, number: int) -> PromptForm:
        """The form in which item `number` is asked."""
        return self.forms[number] if self.forms else self.form


def load_suite(
    path: Path,
    *,
    name: str,
    role: Role,
    grader: str,
    form: Literal["auto", "chat", "plain"],
    max_tokens: int,
    chat: bool = False,
) -> Suite:
    """The suite in a JSONL file: native lines, or GSM8K's own; raises `BadSuite`.

    Native: `{"id"?, "prompt", "answer" or "answers", "family"?}`. GSM8K: `{"question", "answer"}`
    with the result after `####`. The form `auto` is chat where the model has a template (`chat`).
    """
    where = f"suite {name!r} ({path})"
    text = _read(path, where)
    return Suite(
        name=name,
        role=role,
        grader=grader,
        form=(PromptForm.CHAT if chat else PromptForm.PLAIN)
        if form == "auto"
        else PromptForm(form),
        max_tokens=max_tokens,
        items=parse_items(text, where, grader),
    )


def load_texts(path: Path, *, name: str) -> Suite:
    """The texts of a drift suite, `{"text", "id"?}` a line; raises `BadSuite`.

    Nothing is asked and nothing graded: an item's prompt is the text.
    """
    where = f"suite {name!r} ({path})"
    return Suite(
        name=name,
        role=Role.DRIFT,
        grader="",
        form=PromptForm.PLAIN,
        max_tokens=0,
        items=_parse(_read(path, where), where, _drift_text),
    )


def parse_items(text: str, where: str, grader: str = "exact") -> tuple[SuiteItem, ...]:
    """The items of a suite's text, in their order; raises `BadSuite` naming the bad lines.

    An expected answer that `grader` cannot compare with is a bad line, too.
    """

    def question(row: Mapping[str, object]) -> SuiteItem:
        item = _gsm8k(row) if "question" in row and "prompt" not in row else _native(row)
        for answer in answers_of(item):
            check_expected(grader, answer)
        return item

    return _parse(text, where, question)


def _read(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadSuite(f"{where}: no such file; correct `path` in [[gate.suites]]") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadSuite(f"{where}: cannot be read: {error}") from None


def _parse(
    text: str, where: str, make: Callable[[Mapping[str, object]], SuiteItem]
) -> tuple[SuiteItem, ...]:
    items: list[SuiteItem] = []
    problems: list[str] = []
    ids: dict[str, int] = {}
    prompts: dict[str, int] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            item = make(_object(line))
            _refuse_twice(item, number, ids, prompts)
        except UnknownGrader as problem:
            raise BadSuite(f"{where}: {problem}") from None
        except (BadSuite, Ungradable) as problem:
            problems.append(f"line {number}: {problem}")
        else:
            items.append(item)
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise BadSuite(f"{where}: {'; '.join(problems[:_SHOWN])}{more}")
    if not items:
        raise BadSuite(f"{where}: is empty; a suite needs at least one line with a question")
    return tuple(items)


def _refuse_twice(
    item: SuiteItem, number: int, ids: dict[str, int], prompts: dict[str, int]
) -> None:
    folded = _folded(item.prompt)
    if folded in prompts:
        raise BadSuite(f"asks the same as line {prompts[folded]}; remove one of them")
    if item.id in ids:
        raise BadSuite(f"has the id {item.id!r} of line {ids[item.id]}; ids must differ")
    prompts[folded] = ids[item.id] = number


def _object(line: str) -> Mapping[str, object]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        what = getattr(error, "msg", type(error).__name__)
        raise BadSuite(f"is not JSON ({what})") from None
    if not isinstance(row, dict):
        raise BadSuite("is not a JSON object")
    return row


def _native(row: Mapping[str, object]) -> SuiteItem:
    if unknown := sorted(set(row) - _NATIVE):
        raise BadSuite(f"has the unknown key {unknown[0]!r}; known: {', '.join(sorted(_NATIVE))}")
    prompt = _text(row, "prompt")
    answer, *also = _answers(row)
    family = row.get("family", "")
    if not isinstance(family, str):
        raise BadSuite('"family" must be text')
    return SuiteItem(
        id=_id(row, prompt), prompt=prompt, answer=answer, also=tuple(also), stratum=family
    )


def _answers(row: Mapping[str, object]) -> list[str]:
    """The accepted answers: one "answer", or several "answers"."""
    if "answers" not in row:
        return [_text(row, "answer")]
    if "answer" in row:
        raise BadSuite('has both "answer" and "answers"; keep one of them')
    several = row["answers"]
    if not isinstance(several, list) or not several:
        raise BadSuite('"answers" must be a list of texts, at least one')
    return [_text({"answer": one}, "answer") for one in several]


def _drift_text(row: Mapping[str, object]) -> SuiteItem:
    if unknown := sorted(set(row) - {"id", "text"}):
        raise BadSuite(f"has the unknown key {unknown[0]!r}; a drift suite has: id, text")
    text = _text(row, "text")
    return SuiteItem(id=_id(row, text), prompt=text, answer="")


def _id(row: Mapping[str, object], prompt: str) -> str:
    given = row.get("id")
    if given is not None and (isinstance(given, bool) or not isinstance(given, (str, int))):
        raise BadSuite('"id" must be text')
    return str(given) if given is not None else content_id(prompt)


def _gsm8k(row: Mapping[str, object]) -> SuiteItem:
    question, solution = _text(row, "question"), _text(row, "answer")
    before, mark, result = solution.rpartition(_GSM8K_MARK)
    answer = result.strip().replace(",", "")
    if not mark or not answer:
        raise BadSuite(f'"answer" has no result after {_GSM8K_MARK}')
    return SuiteItem(id=content_id(question, before), prompt=question, answer=answer)


def _text(row: Mapping[str, object], key: str) -> str:
    value = row.get(key)
    if value is None:
        raise BadSuite(f'has no "{key}"')
    if isinstance(value, (int, float)) and not isinstance(value, bool) and key == "answer":
        value = str(value)
    if not isinstance(value, str):
        raise BadSuite(f'"{key}" must be text')
    if not value.strip():
        raise BadSuite(f'"{key}" is empty')
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise BadSuite(f'"{key}" holds half a surrogate pair, which is no character')
    return value


def has_chat_template(model: Path) -> bool:
    """Whether the checkpoint in `model` brings a chat template, without loading anything."""
    if (model / "chat_template.jinja").is_file() or (model / "chat_template.json").is_file():
        return True
    try:
        config = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("chat_template"))


def alternating(count: int, *, chat: bool, offset: int = 0) -> tuple[PromptForm, ...]:
    """Forms for `count` paraphrases: chat and plain in turn, or plain alone without a template."""
    if not chat:
        return (PromptForm.PLAIN,) * count
    return tuple(PromptForm.PLAIN if (n + offset) % 2 else PromptForm.CHAT for n in range(count))


def trained_questions(paths: Iterable[Path]) -> dict[str, str]:
    """Every question in the files that training or the probe uses, and where it stands.

    A file or line that cannot be read holds none: who trains on it says what is wrong with it.
    """
    found: dict[str, str] = {}
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError):
            continue
        for number, line in enumerate(lines, start=1):
            for prompt in _prompts(line):
                found.setdefault(_folded(prompt), f"{path}, line {number}")
    return found


def _prompts(line: str) -> list[str]:
    try:
        row = json.loads(line)
        prompts = [row["prompt"], *row.get("paraphrases", ())]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    return [prompt for prompt in prompts if isinstance(prompt, str)]


def refuse_trained(suite: Suite, trained: Mapping[str, str]) -> None:
    """Raise `BadSuite` where the suite asks what is trained on: that would be known by heart."""
    both = [item for item in suite.items if _folded(item.prompt) in trained]
    if both:
        where = trained[_folded(both[0].prompt)]
        raise BadSuite(
            f"suite {suite.name!r}: {len(both)} of its questions are used in training, the first "
            f"{both[0].prompt[:60]!r} ({where}); remove them from one of the two"
        )


def _folded(prompt: str) -> str:
    return " ".join(prompt.split()).casefold()
