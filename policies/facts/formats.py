"""Other people's shapes of a fact, brought into the native one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from policies.facts.templates import questions
from policies.text import Number

RawRecord = Mapping[str, Any]

_CARRIED: Final = (
    "id",
    "relation",
    "paraphrases",
    "eval_prompts",
    "statement",
    "valid_from",
    "valid_until",
    "source",
    "op",
    "priority",
)


# format, the keys that tell it, the keys that tell another
_SIGNS: Final[tuple[tuple[str, frozenset[str], frozenset[str]], ...]] = (
    ("feed-entry", frozenset({"feed_entry", "problem"}), frozenset()),
    ("counterfact", frozenset({"requested_rewrite"}), frozenset()),
    ("zsre", frozenset({"src", "alt"}), frozenset()),
    ("knowedit", frozenset({"target_new"}), frozenset()),
    ("messages", frozenset({"messages"}), frozenset()),
    ("spo", frozenset({"object"}), frozenset({"prompt", "answer"})),
    ("prompt-completion", frozenset({"completion"}), frozenset({"answer"})),
    ("question-answer", frozenset({"question"}), frozenset({"prompt"})),
)


class NotThisFormat(ValueError):
    """A record lacks what its format is made of."""


def detect(record: RawRecord) -> str:
    """The format of a record, by the keys that only it has; `native` where none is."""
    for name, present, absent in _SIGNS:
        if present <= record.keys() and not absent & record.keys():
            return name
    return "native"


def to_native(record: dict[str, Any], fmt: str = "auto") -> dict[str, Any]:
    """The native form of one record; raises `NotThisFormat`. The native form is left as it is."""
    name = detect(record) if fmt == "auto" else fmt
    if name == "native":
        return record
    return {k: v for k, v in _CONVERTERS[name](record).items() if v is not None}


def _spo(record: RawRecord) -> dict[str, Any]:
    relation_key = "predicate" if "predicate" in record and "relation" not in record else "relation"
    subject, relation = _text(record, "subject"), _text(record, relation_key)
    value = _need(record, "object")
    rest = {k: v for k, v in record.items() if k not in {"subject", relation_key, "object"}}
    known = questions(relation, subject)
    return {
        **rest,
        "prompt": known[0] if known else f"What is the {relation.replace('_', ' ')} of {subject}?",
        "answer": value,
        "subject": subject,
        "relation": relation,
    }


def _prompt_completion(record: RawRecord) -> dict[str, Any]:
    completion = _need(record, "completion")
    rest = {k: v for k, v in record.items() if k not in {"prompt", "completion"}}
    return {**rest, "prompt": _text(record, "prompt"), "answer": completion}


def _question_answer(record: RawRecord) -> dict[str, Any]:
    rest = {k: v for k, v in record.items() if k not in {"question", "answer"}}
    answer = _need(record, "answer")
    return {**rest, "prompt": _text(record, "question"), "answer": answer}


def _messages(record: RawRecord) -> dict[str, Any]:
    turns = _need(record, "messages")
    if not isinstance(turns, list) or not all(isinstance(t, dict) for t in turns):
        raise NotThisFormat("messages must be a list of objects with role and content")
    spoken = [t for t in turns if t.get("role") not in ("system", "developer")]
    if [t.get("role") for t in spoken] != ["user", "assistant"]:
        raise NotThisFormat("messages must be one user message and one assistant message")
    rest = {k: v for k, v in record.items() if k != "messages"}
    question, answer = (_said(t) for t in spoken)
    return {**rest, "prompt": question, "answer": answer}


def _said(turn: RawRecord) -> str:
    content = turn.get("content")
    if isinstance(content, list):
        parts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type") == "text"]
        if len(parts) == len(content) and all(isinstance(p, str) for p in parts):
            return "".join(str(p) for p in parts)
    if isinstance(content, str) and not isinstance(content, Number):
        return content
    raise NotThisFormat("a message's content must be text")


def _counterfact(record: RawRecord) -> dict[str, Any]:
    rewrite = _need(record, "requested_rewrite")
    if not isinstance(rewrite, dict):
        raise NotThisFormat("requested_rewrite must be an object")
    target = _need(rewrite, "target_new")
    subject, template = _text(rewrite, "subject"), _text(rewrite, "prompt")
    if "{}" not in template:
        raise NotThisFormat("requested_rewrite.prompt has no {} for its subject")
    return {
        **{k: record[k] for k in _CARRIED if k in record},
        "prompt": template.replace("{}", subject),
        "answer": _need(target, "str") if isinstance(target, dict) else target,
        "subject": subject,
        "relation": rewrite.get("relation_id"),
        "eval_prompts": _held_out(record.get("paraphrase_prompts")),
    }


def _zsre(record: RawRecord) -> dict[str, Any]:
    return {
        **{k: record[k] for k in _CARRIED if k in record},
        "prompt": _text(record, "src"),
        "answer": _need(record, "alt"),
        "subject": record.get("subject"),
        "eval_prompts": _held_out(record.get("rephrase")),
    }


def _knowedit(record: RawRecord) -> dict[str, Any]:
    target = _need(record, "target_new")
    if isinstance(target, list) and len(target) == 1:
        target = target[0]
    return {
        **{k: record[k] for k in _CARRIED if k in record},
        "prompt": _text(record, "prompt"),
        "answer": target,
        "subject": record.get("subject"),
        "eval_prompts": _held_out(record.get("rephrase_prompt", record.get("rephrase"))),
    }


def _held_out(value: object) -> list[object] | None:
    if isinstance(value, str):
        value = [value]
    return value if isinstance(value, list) and value else None


def _feed_entry(record: RawRecord) -> dict[str, Any]:
    raise NotThisFormat(str(record["problem"]))


def _need(record: RawRecord, key: str) -> object:
    if record.get(key) is None:
        raise NotThisFormat(f"has no {key}")
    return record[key]


def _text(record: RawRecord, key: str) -> str:
    value = _need(record, key)
    if not isinstance(value, str) or isinstance(value, Number):
        raise NotThisFormat(f"{key} must be text")
    if not value.strip():
        raise NotThisFormat(f"{key} is empty")
    return value.strip()


_CONVERTERS: Final[dict[str, Callable[[RawRecord], dict[str, Any]]]] = {
    "feed-entry": _feed_entry,
    "spo": _spo,
    "prompt-completion": _prompt_completion,
    "question-answer": _question_answer,
    "messages": _messages,
    "counterfact": _counterfact,
    "zsre": _zsre,
    "knowedit": _knowedit,
}
