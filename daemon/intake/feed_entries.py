"""JSON Feed, RSS and Atom documents become lines of facts."""

from __future__ import annotations

import calendar
import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import feedparser

from policies.errors import FeedFailed
from policies.facts.feed_rules import EntryRule, FeedEntry, entries_of_json_feed, line_of, plain
from policies.text import storable

# A document is parsed as a whole, and a parsed one takes many times its bytes: 0.5 MB of `{}` took
# 230 MB. Within these limits the worst documents that were tried took 120 MB (JSON, 114 bytes a
# value) and 140 MB (XML, 600 bytes a mark) above their own bytes.
DOCUMENT_BYTES: Final = 8 * 2**20
ENTRIES: Final = 10_000
LINES_BYTES: Final = 32 * 2**20
_JSON_MARKS: Final = 1_000_000
_XML_MARKS: Final = 200_000
# feedparser takes the square of a tag's attributes: 52,000 of them took 42 s.
_LONG_TAG: Final = re.compile(rb"<[^<>!?][^<>]{65536}")
_REFERENCE: Final = re.compile(rb"&#([xX][0-9a-fA-F]+|[0-9]+);?")


def lines_of_feed(data: bytes, kind: str, rules: Sequence[EntryRule], source: str) -> bytes:
    """One line an entry, the oldest first, together at most `LINES_BYTES`.

    The same entries give the same bytes, whatever else changed in the document. Raises
    `FeedFailed` where it is no feed, or would take too much memory.
    """
    entries = json_entries(data) if kind == "json-feed" else xml_entries(data)
    lines = bytearray()
    for entry in entries:
        lines += _encoded(line_of(entry, rules, source)) + b"\n"
        if len(lines) > LINES_BYTES:
            size = f"{LINES_BYTES / 2**20:g} MiB"
            raise FeedFailed(f"makes more than {size} of facts by its rules; shorten their texts")
    return bytes(lines)


def _require_few(found: int, most: int, what: str) -> None:
    if found > most:
        raise FeedFailed(
            f"has {found:,} {what}; a document may have {most:,}: publish fewer entries at once, "
            'or JSON Lines (kind = "jsonl")'
        )


def _encoded(line: Mapping[str, Any]) -> bytes:
    """A line as JSON; one with half a surrogate pair keeps it as an escape, for its quarantine."""
    try:
        return json.dumps(line, ensure_ascii=False, sort_keys=True).encode()
    except UnicodeEncodeError:
        return json.dumps(line, sort_keys=True).encode()


def json_entries(data: bytes) -> list[FeedEntry]:
    """The entries of a JSON Feed."""
    marks = sum(data.count(mark) for mark in (b",", b"{", b"["))
    _require_few(marks, _JSON_MARKS, "commas and brackets")
    try:
        # Numbers tell nothing here; an integer of thousands of digits is refused, a float is not.
        document = json.loads(data, parse_int=float)
        if not isinstance(document, dict):
            raise FeedFailed("is no JSON Feed: it is not an object")
        if isinstance(items := document.get("items"), list):
            _require_few(len(items), ENTRIES, "entries")
        return entries_of_json_feed(document)
    except RecursionError:
        raise FeedFailed("is no JSON Feed: it is nested too deep") from None
    except ValueError as error:
        raise FeedFailed(f"is no JSON Feed: {error}".replace("is no JSON Feed: is", "is")) from None


def xml_entries(data: bytes) -> list[FeedEntry]:
    """The entries of an RSS or Atom document."""
    _require_few(data.count(b"<") + data.count(b"="), _XML_MARKS, "tags and attributes")
    if _LONG_TAG.search(data):
        raise FeedFailed("has a tag of more than 64 KiB")
    whole = _REFERENCE.sub(_reference, data)
    try:
        parsed = feedparser.parse(whole, sanitize_html=True, resolve_relative_uris=False)
    except Exception as error:  # feedparser lets through whatever its parsers raise
        reason = f"is neither RSS nor Atom that can be read: {type(error).__name__}: {error}"
        raise FeedFailed(storable(reason, 200)) from error
    if not parsed.get("version"):
        problem = parsed.get("bozo_exception") or "it has no channel or feed"
        raise FeedFailed(f"is neither RSS nor Atom: {problem}".replace("\n", " ")[:200])
    if parsed.get("bozo") and not parsed.entries:
        raise FeedFailed(f"is broken: {parsed.bozo_exception}".replace("\n", " ")[:200])
    _require_few(len(parsed.entries), ENTRIES, "entries")
    return sorted((_entry(e) for e in parsed.entries), key=lambda e: e.date)


def _reference(found: re.Match[bytes]) -> bytes:
    """A reference to a character, or to U+FFFD where there is none: feedparser fails at such."""
    digits = found[1].lstrip(b"0xX") or b"0"
    base = 16 if found[1][:1] in b"xX" else 10
    number = int(digits, base) if len(digits) < 8 else sys.maxunicode + 1
    exists = 0 < number <= sys.maxunicode and not 0xD800 <= number <= 0xDFFF
    return found[0] if exists else b"&#xFFFD;"


def _entry(found: Mapping[str, Any]) -> FeedEntry:
    content = found.get("content") or [{}]
    return FeedEntry(
        id=_text(found, "id"),
        title=plain(_text(found, "title")),
        summary=plain(_text(found, "summary")),
        content=plain(_text(content[0], "value")),
        link=_text(found, "link"),
        author=_text(found, "author"),
        date=_moment(found),
    )


def _text(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    return value[:4000] if isinstance(value, str) else ""


def _moment(found: Mapping[str, Any]) -> str:
    parts = found.get("published_parsed")
    if not parts and "updated_parsed" in found:
        parts = found["updated_parsed"]
    if not parts:
        return ""
    try:
        return datetime.fromtimestamp(calendar.timegm(parts), UTC).isoformat()
    except (TypeError, ValueError, OverflowError, OSError):
        return ""
