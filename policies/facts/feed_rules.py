"""Feeds: entries become facts by rules, failures become pauses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from policies.backoff import LONGEST_PAUSE_S, pause_s
from policies.records import Record

ENTRY_TEXT: Final = 4000
_HOLE: Final = re.compile(r"\{(\w+)\}")
_TEXTS: Final = ("prompt", "answer", "subject", "relation")
_LISTS: Final = ("paraphrases", "eval_prompts")


class EntryRule(Record):
    """How an entry becomes a fact; see the settings of the same names."""

    field: str
    match: str
    prompt: str
    answer: str
    subject: str = ""
    relation: str = ""
    paraphrases: tuple[str, ...] = ()
    eval_prompts: tuple[str, ...] = ()
    op: str = "assert"
    dated: bool = True


class FeedEntry(Record):
    """One entry of a JSON Feed, of RSS or of Atom, reduced to text."""

    id: str = ""
    title: str = ""
    summary: str = ""
    content: str = ""
    link: str = ""
    author: str = ""
    date: str = ""


def holes(rule: EntryRule) -> set[str]:
    """The names in braces that a rule's texts want filled."""
    texts = (rule.prompt, rule.answer, rule.subject, rule.relation)
    found = (_HOLE.findall(t) for t in (*texts, *rule.paraphrases, *rule.eval_prompts))
    return {name for names in found for name in names}


def line_of(entry: FeedEntry, rules: Sequence[EntryRule], source: str) -> dict[str, Any]:
    """The native line that an entry stands for; where no rule fits, a line that says so."""
    for rule in rules:
        found = re.search(rule.match, getattr(entry, rule.field)[:ENTRY_TEXT])
        if found is not None:
            return _filled(rule, entry, found.groupdict(default=""), source)
    return {
        "feed_entry": entry.model_dump(exclude_defaults=True),
        "problem": f"no rule of the feed fits the entry {(entry.title or entry.id)[:80]!r}",
    }


def _filled(
    rule: EntryRule, entry: FeedEntry, groups: Mapping[str, str], source: str
) -> dict[str, Any]:
    values = {
        "title": entry.title,
        "link": entry.link,
        "summary": entry.summary,
        "author": entry.author,
        "date": entry.date,
        **groups,
    }

    def fill(text: str) -> str:
        return " ".join(_HOLE.sub(lambda hole: values.get(hole[1], ""), text).split())

    line: dict[str, Any] = {name: fill(getattr(rule, name)) for name in _TEXTS}
    line |= {name: [fill(text) for text in getattr(rule, name)] for name in _LISTS}
    line |= {"op": rule.op, "source": entry.link or source}
    if rule.dated and entry.date:
        line["valid_from"] = entry.date
    return {name: value for name, value in line.items() if value}


def entries_of_json_feed(document: Mapping[str, Any]) -> list[FeedEntry]:
    """The entries of a JSON Feed (version 1 or 1.1), the oldest first."""
    items = document.get("items")
    if not isinstance(items, list):
        raise ValueError("is no JSON Feed: it has no list of items")
    found = [_json_entry(item) for item in items if isinstance(item, Mapping)]
    return sorted(found, key=lambda entry: entry.date)


def _json_entry(item: Mapping[str, Any]) -> FeedEntry:
    def text(*names: str) -> str:
        for name in names:
            if isinstance(item.get(name), str):
                return str(item[name])[:ENTRY_TEXT]
        return ""

    authors = item.get("authors")
    first = authors[0] if isinstance(authors, list) and authors else item.get("author")
    name = first.get("name") if isinstance(first, Mapping) else None
    return FeedEntry(
        id=text("id"),
        title=text("title"),
        summary=text("summary"),
        content=plain(text("content_text", "content_html")),
        link=text("url", "external_url"),
        author=name if isinstance(name, str) else "",
        date=dated(text("date_published", "date_modified")),
    )


def dated(text: str) -> str:
    """A date as the native line wants it; empty where it is none."""
    try:
        if len(text) == 10:
            return date.fromisoformat(text).isoformat()
        return datetime.fromisoformat(text).isoformat() if len(text) > 10 else ""
    except ValueError:
        return ""


def plain(text: str) -> str:
    """Text without its tags."""
    return " ".join(re.sub(r"<[^<>]*>", " ", text).split())


class Pulse(Record):
    """How a feed has fared: failures in a row, when it is due, and whether its circuit is open.

    `due` is in seconds of a clock that nobody sets.
    """

    due: float
    failures: int = 0
    open: bool = False
    problem: str = ""


FIRST_PAUSE_S: Final = 5.0


def wait_asked(retry_after: str, now: datetime) -> float:
    """Seconds to wait by an HTTP Retry-After, a number or a date (RFC 9110, 10.2.3).

    From 0 to `LONGEST_PAUSE_S`; 0 where the header is neither.
    """
    text = retry_after.strip()
    if text.isascii() and text.isdecimal():
        return min(float(text), LONGEST_PAUSE_S)
    try:
        until = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return 0.0
    until = until if until.tzinfo is not None else until.replace(tzinfo=UTC)
    return min(max((until - now).total_seconds(), 0.0), LONGEST_PAUSE_S)


def after_success(now: float, every_s: float) -> Pulse:
    """The feed answered: it is due at its usual time."""
    return Pulse(due=now + every_s)


def after_failure(
    pulse: Pulse,
    problem: str,
    now: float,
    *,
    open_after: int,
    jitter: float,
    wait_s: float = 0.0,
) -> Pulse:
    """The feed failed: pauses double, and after `open_after` failures in a row its circuit opens.

    `jitter` in [0, 1) spreads the pauses of many feeds; `wait_s` is what the server asked for.
    """
    failures = pulse.failures + 1
    pause = pause_s(failures, FIRST_PAUSE_S)
    opened = failures >= open_after
    if opened:
        pause = max(pause, LONGEST_PAUSE_S / 4)
    pause = max(pause * (1.0 + 0.25 * jitter), min(wait_s, LONGEST_PAUSE_S))
    return Pulse(due=now + pause, failures=failures, open=opened, problem=problem)
