"""One line of JSON becomes one fact, or one clear reason why not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, TypeVar

from policies.errors import InvalidFacts
from policies.facts.fast_path import quick_reader
from policies.facts.formats import NotThisFormat, to_native
from policies.facts.jsonline import (
    DEFAULT_LIMITS,
    LineLimits,
    Reason,
    lines_of,
    named,
    quote,
    read_object,
)
from policies.facts.supersession import moment
from policies.records import Fact, Operation, Priority, Quarantined, content_id
from policies.text import BadText, Number, clean, folded, nearest, same_text, storable

E = TypeVar("E", bound=StrEnum)

EXCERPT: Final = 2000
REASON: Final = 1000
FIELDS: Final = tuple(name for name in Fact.model_fields)
_KNOWN: Final = frozenset(FIELDS)
_TEXT_FIELDS: Final = ("id", "subject", "relation", "statement", "source")
_LIST_FIELDS: Final = ("paraphrases", "eval_prompts")
_WHOLE: Final = timedelta(minutes=1)
_ID: Final = re.compile(r"[^\s/~\x00-\x1f]{1,128}")


class Format(StrEnum):
    """The shapes of line that are understood; `auto` looks at each line."""

    AUTO = "auto"
    NATIVE = "native"
    SPO = "spo"
    PROMPT_COMPLETION = "prompt-completion"
    QUESTION_ANSWER = "question-answer"
    MESSAGES = "messages"
    COUNTERFACT = "counterfact"
    ZSRE = "zsre"
    KNOWEDIT = "knowedit"


def parse_line(
    raw: bytes, number: int, limits: LineLimits = DEFAULT_LIMITS, fmt: Format = Format.AUTO
) -> Fact | Quarantined:
    """The fact on line `number` (from 1), or why it is none. Never raises on any bytes."""
    try:
        if fmt is Format.AUTO or fmt is Format.NATIVE:
            fields = quick_reader(
                limits.line_bytes, limits.prompt, limits.answer, limits.other, limits.paraphrases
            ).fields(raw)
            if fields is not None and (fact := _plain(fields)) is not None:
                return fact
        return fact_from(read_object(raw, number, limits), limits, fmt)
    except Reason as reason:
        return quarantined(raw, number, reason.kind, str(reason))
    except Exception as error:
        return unexpected(raw, number, error)


def parse_facts(
    text: str | bytes, limits: LineLimits = DEFAULT_LIMITS, fmt: Format = Format.AUTO
) -> tuple[Fact, ...]:
    """All facts of a small JSONL text; raises `InvalidFacts` naming every bad line."""
    parsed = [parse_line(raw, number, limits, fmt) for number, raw in lines_of(text)]
    bad = tuple((p.line, p.reason) for p in parsed if isinstance(p, Quarantined))
    if bad:
        raise InvalidFacts(bad)
    return tuple(p for p in parsed if isinstance(p, Fact))


def quarantined(raw: bytes, number: int, kind: str, reason: str) -> Quarantined:
    """The record of a bad line with the beginning of its text, made printable."""
    text = raw[: EXCERPT * 4].decode("utf-8", "replace").replace("\0", "\ufffd").strip()
    said = storable(reason, REASON)
    return Quarantined(line=number, kind=kind, reason=said, text=text[:EXCERPT])


def unexpected(raw: bytes, number: int, error: Exception) -> Quarantined:
    """The record of a line that raised an unexpected error."""
    reason = f"cannot be admitted: {type(error).__name__}: {error}"
    return quarantined(raw, number, "unexpected", reason)


def fact_from(record: dict[str, Any], limits: LineLimits, fmt: Format = Format.AUTO) -> Fact:
    """The fact that a decoded line states, whatever its format; raises `Reason`."""
    try:
        native = to_native(record, fmt.value)
    except NotThisFormat as error:
        raise Reason("format", str(error)) from None
    _check_keys(native)
    try:
        return _fact(native, limits)
    except BadText as error:
        raise Reason(error.kind, str(error)) from None


def _check_keys(record: dict[str, Any]) -> None:
    if record.keys() <= _KNOWN:
        return
    for key in record:
        if key not in _KNOWN:
            close = nearest(key, FIELDS)
            hint = f"; did you mean {quote(close)}?" if close else f"; known: {', '.join(FIELDS)}"
            raise Reason("unknown-key", f"has the unknown key {quote(key)}{hint}")


def _fact(record: dict[str, Any], limits: LineLimits) -> Fact:
    op = _choice(record, "op", Operation, Operation.ASSERT)
    text = {
        name: clean(record[name], name, limits.other)
        for name in _TEXT_FIELDS
        if record.get(name) is not None
    }
    if "id" in text and not _ID.fullmatch(text["id"]):
        raise Reason("bad-id", "id must be 1 to 128 characters without blanks, '/' or '~'")
    prompt, answer = _question(record, op, text, limits)
    paraphrases, eval_prompts = (_paraphrases(record, name, limits) for name in _LIST_FIELDS)
    _check_held_out(prompt, paraphrases, eval_prompts)
    since, until = (_when(record, name) for name in ("valid_from", "valid_until"))
    if since is not None and until is not None and moment(until) <= moment(since):
        raise Reason("date", "valid_until is not after valid_from")
    subject, relation = text.get("subject"), text.get("relation")
    prompt_folded = folded(prompt)
    identity = text.get("id") or fact_id(
        op=op, prompt=prompt, answer=answer, subject=subject, relation=relation, since=since
    )
    return Fact(
        id=identity,
        prompt=prompt,
        answer=answer,
        subject=subject,
        relation=relation,
        paraphrases=tuple(p for p in paraphrases if folded(p) != prompt_folded),
        eval_prompts=eval_prompts,
        statement=text.get("statement"),
        valid_from=since,
        valid_until=until,
        source=text.get("source"),
        op=op,
        priority=_choice(record, "priority", Priority, Priority.NORMAL),
    )


def _plain(fields: dict[str, Any]) -> Fact | None:
    """The fact of a plain line's fields; none where its texts need a second look."""
    prompt, answer = fields["prompt"], fields["answer"]
    asked = prompt.lower()
    if asked == answer.lower():
        return None
    paraphrases, eval_prompts = fields.get("paraphrases", ()), fields.get("eval_prompts", ())
    trained = {p.lower() for p in paraphrases}
    held_out = {p.lower() for p in eval_prompts}
    if asked in trained or asked in held_out or trained & held_out:
        return None
    if len(trained) < len(paraphrases) or len(held_out) < len(eval_prompts):
        return None
    since = fields.get("valid_from")
    if since is not None:
        try:
            since = _moment(since)
        except ValueError:
            return None
    subject, relation = fields.get("subject"), fields.get("relation")
    op = Operation.ASSERT
    identity = fields.get("id") or fact_id(
        op=op, prompt=prompt, answer=answer, subject=subject, relation=relation, since=since
    )
    return Fact(
        id=identity,
        prompt=prompt,
        answer=answer,
        subject=subject,
        relation=relation,
        paraphrases=tuple(paraphrases),
        eval_prompts=tuple(eval_prompts),
        statement=fields.get("statement"),
        valid_from=since,
        valid_until=None,
        source=fields.get("source"),
        op=op,
        priority=Priority.NORMAL,
    )


def fact_id(
    *,
    op: Operation,
    prompt: str,
    answer: str,
    subject: str | None,
    relation: str | None,
    since: date | datetime | None,
) -> str:
    """The derived id: what the fact is about, its answer, and since when."""
    about = (
        ("key", subject.casefold(), relation.casefold())
        if subject and relation
        else ("prompt", folded(prompt))
    )
    head = ("retract",) if op is Operation.RETRACT else ()
    return content_id(*head, *about, answer, _stamp(since) if since else "")


def _question(
    record: dict[str, Any], op: Operation, text: dict[str, str], limits: LineLimits
) -> tuple[str, str]:
    if op is Operation.RETRACT:
        named = "id" in text or ("subject" in text and "relation" in text)
        if not named and record.get("prompt") is None:
            raise Reason("missing", "retract needs an id, a subject and relation, or a prompt")
        prompt, answer = (
            clean(record[name], name, getattr(limits, name), number=name == "answer")
            if record.get(name) is not None
            else ""
            for name in ("prompt", "answer")
        )
        return prompt, answer
    for name in ("prompt", "answer"):
        if record.get(name) is None:
            raise Reason("missing", f"has no {name}")
    prompt = clean(record["prompt"], "prompt", limits.prompt)
    answer = clean(record["answer"], "answer", limits.answer, number=True)
    if same_text(prompt, answer):
        raise Reason("answer-is-prompt", "the answer is the prompt itself")
    return prompt, answer


def _paraphrases(record: dict[str, Any], name: str, limits: LineLimits) -> tuple[str, ...]:
    value = record.get(name)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise Reason("type", f"{name} must be a list of texts, not {named(value)}")
    if len(value) > limits.paraphrases:
        raise Reason(
            "too-long", f"{name} has {len(value)} paraphrases; at most {limits.paraphrases}"
        )
    return tuple(
        dict.fromkeys(clean(v, f"{name} holds an item that", limits.prompt) for v in value)
    )


def _check_held_out(prompt: str, trained: Sequence[str], held_out: Sequence[str]) -> None:
    if not held_out:
        return
    seen = {folded(t) for t in (prompt, *trained)}
    for paraphrase in held_out:
        if folded(paraphrase) in seen:
            raise Reason(
                "held-out-trained",
                f"eval_prompts holds a paraphrase that is trained too: {quote(paraphrase)}",
            )


def _when(record: dict[str, Any], name: str) -> date | datetime | None:
    value = record.get(name)
    if value is None:
        return None
    try:
        if isinstance(value, str) and not isinstance(value, Number):
            return _moment(value)
    except ValueError:
        pass
    shape = "like 2026-11-01 or 2026-11-01T12:00:00Z, in the years 1 to 9999 of UTC"
    raise Reason("date", f"{name} must be a date {shape}")


@lru_cache(maxsize=4096)
def _moment(value: str) -> date | datetime:
    """Raises `ValueError` also for what has no place in UTC, or is not stored as it was given."""
    if len(value) == 10:
        return date.fromisoformat(value)
    if len(value) < 11:
        raise ValueError(value)
    found = datetime.fromisoformat(value)
    if (found.utcoffset() or _WHOLE) % _WHOLE:
        raise ValueError(value)
    try:
        moment(found)
    except OverflowError:
        raise ValueError(value) from None
    return found


@lru_cache(maxsize=4096)
def _stamp(since: date | datetime) -> str:
    return moment(since).isoformat()


def _choice(record: dict[str, Any], name: str, options: type[E], default: E) -> E:
    value = record.get(name)
    if value is None:
        return default
    for option in options:
        if value == option.value and not isinstance(value, Number):
            return option
    words = [o.value for o in options]
    close = nearest(value, words) if isinstance(value, str) else None
    hint = f"; did you mean {quote(close)}?" if close else ""
    raise Reason("type", f"{name} must be one of {', '.join(words)}{hint}")
