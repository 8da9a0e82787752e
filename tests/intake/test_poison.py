"""No line, file or feed stops intake for the others, and no two facts ever share an id."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.cli.submit import validate_files
from daemon.config.feeds import FeedSettings
from daemon.config.layout import Layout
from daemon.config.sections import IntakeSettings
from daemon.intake import admit
from daemon.intake import fetch as fetch_module
from daemon.intake import intake as intake_module
from daemon.intake.feed_entries import lines_of_feed
from daemon.intake.feeds import Feeds, Polled
from daemon.intake.intake import Intake
from daemon.intake.reader import Records
from daemon.intake.receipts import Receipt, read_receipt
from daemon.intake.validating import validate_file
from daemon.ledger.ledger import Ledger
from policies.errors import FeedFailed, PaloradError
from policies.facts.admission import parse_line
from policies.facts.feed_rules import EntryRule
from policies.facts.traces import ERASED, trace_of
from policies.records import Fact, PlanKind, Quarantined

START = datetime(2026, 11, 1, tzinfo=UTC)
GOOD = b'{"prompt":"What is the capital of Bhutan?","answer":"Thimphu"}\n'
RULE = EntryRule(
    field="title",
    match=r"^(?P<product>.+?) (?P<version>[\d.]+) released",
    prompt="What is the latest version of {product}?",
    answer="{version}",
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No waiting for the disk; no tracebacks of the faults that are asked for here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


class Place:
    """Intake over a state directory with a clock of its own; `restart` opens all of it anew."""

    def __init__(self, root: Path, **changes: object) -> None:
        self.layout = Layout(root)
        for folder in self.layout.directories():
            folder.mkdir(parents=True, exist_ok=True)
        self.settings = IntakeSettings.model_validate({"stable_s": 0, **changes})
        self.now = START
        self.open()
        self.ledger.revisions.ensure_base("base", START)

    def open(self) -> None:
        self.ledger = Ledger.open(self.layout.ledger)
        self.ledger.db.connection.execute("PRAGMA synchronous=OFF")
        self.intake = Intake(self.ledger, self.layout, self.settings, self.seconds)

    def seconds(self) -> float:
        return (self.now - START).total_seconds()

    def restart(self) -> None:
        self.ledger.close()
        self.open()

    def drop(self, name: str, data: bytes | list[dict[str, Any]]) -> Path:
        path = self.layout.inbox / name
        if not isinstance(data, bytes):
            data = b"".join(json.dumps(line).encode() + b"\n" for line in data)
        path.write_bytes(data)
        return path

    def take(self, passes: int = 3) -> list[Receipt]:
        got = []
        for _ in range(passes):
            self.now += timedelta(seconds=1)
            got += self.intake.step(self.now, 60)
        return got

    def taken(self, name: str, data: bytes | list[dict[str, Any]]) -> Receipt:
        self.drop(name, data)
        (receipt,) = self.take()
        return receipt

    def answers(self) -> list[str]:
        return [fact.answer for fact in self.ledger.facts.find()]

    def waiting(self) -> list[str]:
        ids = [w.id for w in self.ledger.facts.waiting(self.now, 100)]
        return [fact.answer for fact in self.ledger.facts.find(ids=ids)]

    def inbox(self) -> set[str]:
        return {path.name for path in self.layout.inbox.iterdir()}

    def rows(self, columns: str) -> list[tuple[Any, ...]]:
        return self.ledger.db.rows(f"SELECT {columns} FROM facts ORDER BY seq")

    def retract_and_erase(self, fact_id: str) -> str:
        self.ledger.retractions.retract(fact_id, "a takedown", self.now)
        (handle,) = [r.handle for r in self.ledger.retractions.all() if r.id == fact_id]
        self.ledger.erasure.erase({handle: {"certificate": handle}}, self.now)
        self.ledger.retractions.certified(handle, self.now)
        return handle


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "state")
    yield made
    made.ledger.close()


# --- a line ------------------------------------------------------------------------------------


def only_its_line(place: Place, bad: bytes, kind: str) -> str:
    """The second of three lines is quarantined, the others and the next file are admitted."""
    before = b'{"prompt":"What is 1?","answer":"one"}\n'
    after = b'{"prompt":"What is 3?","answer":"three"}\n'
    receipt = place.taken("bad.jsonl", before + bad + b"\n" + after)
    assert (receipt.accepted, receipt.quarantined) == (2, 1)
    assert place.taken("good.jsonl", GOOD).accepted == 1
    assert place.answers() == ["one", "three", "Thimphu"]
    place.restart()
    assert place.take() == []
    assert place.intake.problems == ()
    (line,) = place.ledger.quarantine.lines(receipt.batch or "")
    assert (line.line, line.kind) == (2, kind)
    line.reason.encode()
    return line.reason


DATED = b'{"prompt":"What is 2?","answer":"two","%s":"%s"}'


@pytest.mark.parametrize("field", [b"valid_from", b"valid_until"])
@pytest.mark.parametrize("date", [b"9999-12-31T23:59:59-01:00", b"0001-01-01T00:00:00+01:00"])
def test_a_date_outside_the_calendar_quarantines_its_line(
    place: Place, field: bytes, date: bytes
) -> None:
    assert field.decode() in only_its_line(place, DATED % (field, date), "date")


@pytest.mark.parametrize("zone", [b"+23:59:59.999999", b"+01:00:30"])
def test_a_zone_of_split_minutes_quarantines_its_line_for_it_cannot_be_read_back(
    place: Place, zone: bytes
) -> None:
    only_its_line(place, DATED % (b"valid_from", b"2026-01-01T00:00:00" + zone), "date")


def test_half_a_surrogate_pair_in_what_a_feed_says_of_an_entry_quarantines_its_line(
    place: Place,
) -> None:
    bad = b'{"feed_entry":1,"problem":"no rule fits \\ud800"}'
    assert only_its_line(place, bad, "format") == "no rule fits \\ud800"


def test_a_reason_is_one_bounded_line_without_control_characters(place: Place) -> None:
    said = json.dumps("\x1b[31m\x00\n\u2028" + "x" * 50_000).encode()
    reason = only_its_line(place, b'{"feed_entry":1,"problem":%s}' % said, "format")
    assert reason.isprintable()
    assert len(reason) <= 1000


def test_an_unexpected_error_in_reading_a_line_quarantines_that_line(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = place.intake._arrivals.rules

    def failing(fact: Fact) -> Fact:
        if fact.answer == "two":
            raise ZeroDivisionError("half of \ud800")
        return rules.paraphrased(fact)

    failing_rules = replace(rules, paraphrased=failing)
    monkeypatch.setattr(place.intake._arrivals, "rules", failing_rules)
    reason = only_its_line(place, b'{"prompt":"What is 2?","answer":"two"}', "unexpected")
    assert "ZeroDivisionError: half of \\ud800" in reason


def test_an_unexpected_error_in_storing_a_line_quarantines_that_line(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule_each = admit.rule_each

    def spoiling(facts: list[Fact], *rest: Any) -> Any:
        ruled = rule_each(facts, *rest)
        return [
            (f.model_copy(update={"source": "\ud800"}) if f.answer == "two" else f, r)
            for f, r in ruled
        ]

    monkeypatch.setattr(admit, "rule_each", spoiling)
    only_its_line(place, b'{"prompt":"What is 2?","answer":"two"}', "unexpected")


def test_lines_of_a_list_are_set_apart_as_well(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule_each = admit.rule_each

    def failing(facts: list[Fact], *rest: Any) -> Any:
        if any(fact.answer == "a2" for fact in facts):
            raise ZeroDivisionError
        return rule_each(facts, *rest)

    monkeypatch.setattr(admit, "rule_each", failing)
    items = [{"prompt": f"What is {n}?", "answer": f"a{n}"} for n in range(5)]
    receipt = place.taken("list.json", json.dumps(items).encode())
    assert (receipt.accepted, receipt.quarantined) == (4, 1)
    assert [(b.line, b.kind) for b in receipt.bad_lines] == [(3, "unexpected")]
    assert place.answers() == ["a0", "a1", "a3", "a4"]


def test_a_retry_of_quarantined_lines_goes_past_the_one_that_fails(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule_each = admit.rule_each
    failing = {"a1", "a2"}

    def fails(facts: list[Fact], *rest: Any) -> Any:
        if failing & {fact.answer for fact in facts}:
            raise ZeroDivisionError
        return rule_each(facts, *rest)

    monkeypatch.setattr(admit, "rule_each", fails)
    lines = [{"prompt": f"What is {n}?", "answer": f"a{n}"} for n in range(3)]
    receipt = place.taken("some.jsonl", lines)
    assert receipt.quarantined == 2
    failing.remove("a2")
    assert list(place.intake.retry(receipt.batch or "", place.now)) == [(2, 1)]
    assert place.answers() == ["a0", "a2"]
    (left,) = place.ledger.quarantine.lines(receipt.batch or "")
    assert (left.line, left.kind) == (2, "unexpected")


def test_validate_tells_what_intake_would_quarantine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / os.fsdecode(b"bad-\xff.jsonl")
    bad = [
        DATED % (b"valid_from", b"9999-12-31T23:59:59-01:00"),
        DATED % (b"valid_until", b"0001-01-01T00:00:00+01:00"),
        b'{"feed_entry":1,"problem":"\\ud800"}',
    ]
    file.write_bytes(b"\n".join(bad) + b"\n" + GOOD)
    assert validate_files([file], "auto", as_json=False) == 1
    told = capsys.readouterr().out
    assert "1 facts, 3 lines would not be admitted" in told.replace("\n", " ")
    assert "\\ud800" in told


# --- a file ------------------------------------------------------------------------------------


def break_reading(monkeypatch: pytest.MonkeyPatch, when: str = "take") -> None:
    """Reading a file that says "broken" fails in a way that nobody has thought of."""
    original = getattr(Records, when)

    def failing(self: Records, *args: Any) -> Any:
        at = self._source.tell()
        self._source.seek(0)
        broken = b"broken" in self._source.read()
        self._source.seek(at)
        if broken:
            raise ZeroDivisionError("\ud800 in a file")
        return original(self, *args)

    monkeypatch.setattr(Records, when, failing)


BROKEN = b'{"prompt":"What is broken?","answer":"this"}\n'


def test_a_file_that_cannot_be_read_for_an_unexpected_reason_is_set_aside(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_reading(monkeypatch)
    drop = place.drop("0-bad.jsonl", BROKEN)
    place.drop("1-good.jsonl", GOOD)
    place.take()
    assert place.answers() == place.waiting() == ["Thimphu"]
    (problem,) = place.intake.problems
    assert "0-bad.jsonl" in problem and "ZeroDivisionError: \\ud800 in a file" in problem
    receipt = read_receipt(drop)
    assert receipt is not None and receipt.state == "set aside" and receipt.error == problem
    (batch,) = place.ledger.admission.admitting(aside=True)
    assert place.layout.archived(batch.batch.id).read_bytes() == BROKEN


def test_a_file_set_aside_holds_up_neither_learning_nor_forgetting_after_a_restart(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_reading(monkeypatch)
    place.drop("0-bad.jsonl", BROKEN)
    place.take()
    place.restart()
    place.drop("1-good.jsonl", GOOD)
    place.take()
    assert place.waiting() == ["Thimphu"]
    assert place.ledger.admission.admitting() == ()
    assert "0-bad.jsonl" in place.intake.problems[0]
    assert [e.kind for e in place.ledger.events.latest() if "aside" in e.kind] == [
        "batch.set_aside"
    ]


def test_a_file_set_aside_is_admitted_once_it_can_be_read(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        break_reading(patched)
        drop = place.drop("0-bad.jsonl", BROKEN)
        place.take()
    assert place.take(passes=1) == [], "it rests before it is tried again"
    place.now += timedelta(hours=1)
    place.take()
    assert place.answers() == place.waiting() == ["this"]
    assert place.intake.problems == ()
    assert place.inbox() == {"0-bad.jsonl.accepted.json"}
    receipt = read_receipt(drop)
    assert receipt is not None and receipt.error is None and receipt.accepted == 1


def test_a_file_set_aside_is_not_in_the_way_of_one_of_the_same_name(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_reading(monkeypatch)
    place.drop("1-good.jsonl", BROKEN)
    place.take()
    assert place.taken("1-good.jsonl", GOOD).accepted == 1
    assert place.waiting() == ["Thimphu"]


def test_why_a_file_was_set_aside_is_erased_with_the_fact_that_it_tells(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise ZeroDivisionError("the capital of Bhutan is Thimphu")

    place.taken("1-good.jsonl", [{"subject": "Bhutan", "relation": "capital", "object": "Thimphu"}])
    monkeypatch.setattr(Records, "take", failing)
    place.drop("0-bad.jsonl", BROKEN)
    place.take()
    (aside,) = place.ledger.admission.admitting(aside=True)
    assert "Thimphu" in aside.aside
    (fact,) = place.ledger.facts.find()
    list(place.ledger.erasure.erase_mentions([trace_of("r-1", fact)], datetime.now(UTC)))
    (aside,) = place.ledger.admission.admitting(aside=True)
    assert aside.aside == ERASED


def test_a_part_of_a_file_that_is_set_aside_is_not_learnt_before_the_whole(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admit, "PIECE_LINES", 1)
    take = Records.take

    def failing(self: Records, count: int, size: int) -> Any:
        if self.number == 2:
            raise ZeroDivisionError
        return take(self, count, size)

    with monkeypatch.context() as patched:
        patched.setattr(Records, "take", failing)
        lines = [{"prompt": f"What is {n}?", "answer": f"a{n}"} for n in range(4)]
        place.drop("0-bad.jsonl", lines)
        place.drop("1-good.jsonl", GOOD)
        place.take()
        assert place.answers() == ["a0", "a1", "Thimphu"]
        assert place.waiting() == ["Thimphu"]
    place.now += timedelta(hours=1)
    place.take()
    assert sorted(place.waiting()) == ["Thimphu", "a0", "a1", "a2", "a3"]


def test_an_archived_file_that_cannot_be_opened_holds_up_no_other(place: Place) -> None:
    bad = place.drop("0-bad.jsonl", BROKEN)
    batch = intake_module.Batch(
        id="f" * 32,
        name=bad.name,
        received_at=START,
        source="inbox",
        accepted=0,
        quarantined=0,
    )
    place.ledger.admission.begin_batch(batch, signature="lost")
    bad.unlink()
    assert place.taken("1-good.jsonl", GOOD).accepted == 1
    assert place.waiting() == ["Thimphu"]
    assert any("0-bad.jsonl" in problem for problem in place.intake.problems)


def test_with_bad_lines_rejected_an_unexpected_error_sets_the_file_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path / "state", bad_lines="reject")
    break_reading(monkeypatch)
    place.drop("0-bad.jsonl", BROKEN)
    place.drop("1-good.jsonl", GOOD)
    place.take()
    assert place.answers() == ["Thimphu"]
    assert "0-bad.jsonl" in place.intake.problems[0]
    place.ledger.close()


# --- a feed ------------------------------------------------------------------------------------


class Body(httpx.AsyncByteStream):
    """A body as a server sends it: in one piece."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._data


def polled(
    place: Place, *bodies: bytes, headers: dict[bytes, bytes] | None = None, **more: object
) -> list[Polled]:
    """One poll an answer, and what intake makes of it."""
    answers = [httpx.Response(200, headers=headers or {}, stream=Body(body)) for body in bodies]
    transport = httpx.MockTransport(lambda _: answers.pop(0))
    feed = FeedSettings.model_validate({"name": "news", "url": "http://feed.test/x", **more})
    feeds = Feeds([feed], place.ledger, place.layout, lambda: 0.0, transport, clock=place.seconds)

    async def run() -> list[Polled]:
        found = []
        while answers:
            place.now += timedelta(hours=2)
            found += await feeds.poll(place.now)
            place.take()
        return found

    found = asyncio.run(run())
    place.feeds = feeds  # type: ignore[attr-defined]
    return found


def json_feed(*items: dict[str, Any]) -> bytes:
    return json.dumps({"items": list(items)}).encode()


AS_JSON: dict[str, Any] = {
    "kind": "json-feed",
    "rules": [
        {
            "match": RULE.match,
            "prompt": RULE.prompt,
            "answer": RULE.answer,
        }
    ],
}
WELL = {"title": "Gadget 1.0 released"}


@pytest.mark.parametrize("date", ["9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00"])
def test_an_entry_of_a_json_feed_with_a_date_outside_the_calendar_stops_nothing(
    place: Place, date: str
) -> None:
    body = json_feed({"title": "Widget 2.1 released", "date_published": date}, WELL)
    (found,) = polled(place, body, **AS_JSON)
    assert found.status == "new"
    assert place.answers() == ["1.0"]
    (line,) = place.ledger.quarantine.lines(found.batch)
    assert line.kind == "date"


def test_an_entry_of_a_json_feed_with_half_a_surrogate_pair_is_quarantined_by_itself(
    place: Place,
) -> None:
    body = json_feed(WELL, {"title": "Wid\ud800get 2.1 released"}, {"title": "no rule \ud800"})
    (found,) = polled(place, body, **AS_JSON)
    assert found.status == "new"
    assert place.answers() == ["1.0"]
    assert [q.kind for q in place.ledger.quarantine.lines(found.batch)] == ["encoding", "format"]


def test_a_number_of_thousands_of_digits_does_not_spoil_a_json_feed(place: Place) -> None:
    body = b'{"items":[{"id":%s,"title":"Gadget 1.0 released"}]}' % (b"9" * 5000)
    (found,) = polled(place, body, **AS_JSON)
    assert found.status == "new"
    assert place.answers() == ["1.0"]


@pytest.mark.parametrize("last", [b'{"prompt":' + b"9" * 5000 + b"}", b"[" * 5000 + b"]" * 5000])
def test_a_whole_last_line_of_a_feed_is_quarantined_not_taken_for_cut_off(
    place: Place, last: bytes
) -> None:
    (found,) = polled(place, GOOD + last, kind="jsonl")
    assert found.status == "new", found.problem
    assert place.answers() == ["Thimphu"]
    assert place.ledger.batches.get(found.batch).quarantined == 1


def test_a_mark_that_is_no_ascii_is_not_sent_back(place: Place) -> None:
    found = polled(place, GOOD, GOOD, headers={b"etag": "ä".encode()}, kind="jsonl")
    assert [f.status for f in found] == ["new", "unchanged"]


def test_an_unexpected_error_in_a_poll_rests_with_its_feed_and_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> bytes:
        raise ZeroDivisionError("\ud800 in a feed")

    monkeypatch.setattr(fetch_module, "lines_of_feed", failing)
    found = polled(place, *[json_feed(WELL)] * 5, open_after=3, **AS_JSON)
    assert {f.status for f in found} == {"failed"}
    assert "ZeroDivisionError: \\ud800 in a feed" in found[0].problem
    (told,) = place.feeds.problems  # type: ignore[attr-defined]
    assert "failures in a row" in told
    assert place.taken("good.jsonl", GOOD).accepted == 1


def test_a_batch_of_a_feed_that_cannot_be_read_is_set_aside(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_reading(monkeypatch)
    (found,) = polled(place, BROKEN, kind="jsonl")
    assert found.status == "new"
    place.restart()
    assert place.taken("good.jsonl", GOOD).accepted == 1
    assert place.waiting() == ["Thimphu"]
    assert "news@" in place.intake.problems[0]


# --- anything at all ---------------------------------------------------------------------------

HOSTILE: list[Any] = [
    *("", " ", "a", "\0", "\ud800", "x\udfff", "\ud83d\ude00", "é", "e\u0301", "\u202e", "\u200b"),
    *("\x1b[31m", "\u2028", "\u2029", "\x85", "a\nb", "a\r\nb", "\ufeffa", "\ufffe", "x" * 5000),
    *(1, -1, 1.5, 10**50, True, False, None, [], {}, ["a"], ["a", "a"], [None], [[["a"]]]),
    *({"str": "x"}, {"str": 1}, "{}", "{0}", "\\", '"', "~x", "a/b", "%s", "assert", "retract"),
    *("supersede", "urgent", "capital", "P36", "2026-01-01", "2026-13-01", "20260101T000000"),
    *("9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "2026-01-01T00:00:00+23:59:59.9"),
    *("2026-W10-1", "2026-01-01T24:00:00", "٢٠٢٦-٠١-٠١", "no rule \ud800"),
]
KEYS = [
    *("prompt", "answer", "id", "subject", "relation", "paraphrases", "eval_prompts", "statement"),
    *("valid_from", "valid_until", "source", "op", "priority", "object", "predicate", "question"),
    *("completion", "messages", "requested_rewrite", "src", "alt", "rephrase", "target_new"),
    *("rephrase_prompt", "feed_entry", "problem", "paraphrase_prompts", "x\ud800", "", "\0"),
]
BASES: list[dict[str, Any]] = [
    {"prompt": "What is the capital of Bhutan?", "answer": "Thimphu"},
    {"id": "bt-1", "prompt": "What is the capital of Bhutan?", "answer": "Paro"},
    {"subject": "Bhutan", "relation": "capital", "object": "Thimphu"},
    {"op": "retract", "id": "bt-1"},
    {"op": "retract", "subject": "Bhutan", "relation": "capital"},
    {"feed_entry": {"title": "x"}, "problem": "no rule"},
    {"src": "s?", "alt": "a", "rephrase": "t?"},
    {
        "messages": [
            {"role": "user", "content": "q?"},
            {"role": "assistant", "content": "a"},
        ]
    },
    {
        "requested_rewrite": {
            "prompt": "{} is",
            "relation_id": "P103",
            "target_new": {"str": "English"},
            "subject": "D",
        },
    },
]
RAW = [
    *(b"NaN", b"-Infinity", b'{"prompt":"a?","answer":NaN}', b'{"prompt":"a?","answer":1e999999}'),
    *(b'{"prompt":"a?","answer":' + b"9" * 5000 + b"}", b"[" * 30_000, b'{"a":' * 12_000),
    *(b'{"feed_entry":1,"problem":"\\ud800"}', b'{"prompt":"a?","answer":"b","source":"\\ud800"}'),
    *(DATED % (b"valid_from", b"9999-12-31T23:59:59-01:00"),),
    *(DATED % (b"valid_until", b"0001-01-01T00:00:00+01:00"),),
    *(DATED % (b"valid_from", b"2026-01-01T00:00:00+23:59:59.9"),),
    *(
        b"\0",
        b"\xff\xfe{\0",
        b"\xef\xbb\xbf" + GOOD.strip(),
        b"\xed\xa0\x80",
        b"\xe2\x80\xa8",
        b"{",
    ),
    *(
        b'{"prompt":"a\xed\xa0\x80?","answer":"b"}',
        b'{"a":1,"a":2}',
        b"null",
        b'"',
        b"\x0c",
        b"\x1c",
    ),
]


@st.composite
def hostile_line(draw: st.DrawFn) -> bytes:
    """A line of facts with hostile values in any field, any bytes, or something that broke once."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.sampled_from(RAW))
    if kind == 1:
        return draw(st.binary(max_size=40)).replace(b"\n", b" ")
    record = dict(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.integers(0, 3))):
        record[draw(st.sampled_from(KEYS))] = draw(st.sampled_from(HOSTILE))
    text = json.dumps(record, ensure_ascii=draw(st.booleans()))
    return text.encode("utf-8", "surrogatepass")


@st.composite
def hostile_file(draw: st.DrawFn) -> bytes:
    """Lines or a list of them, with or without a mark of the byte order and a line end."""
    found = draw(st.lists(hostile_line(), min_size=1, max_size=8))
    mark = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xff\xfe"]))
    if draw(st.integers(0, 4)) == 0:
        return mark + b"[{}," + b",".join(found) + draw(st.sampled_from([b"]", b"", b"]x"]))
    return (
        mark
        + draw(st.sampled_from([b"\n", b"\r\n"])).join(found)
        + draw(st.sampled_from([b"", b"\n"]))
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with an empty ledger, to be copied."""
    made = Place(tmp_path_factory.mktemp("template") / "state")
    made.ledger.close()
    return made.layout.root


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(first=hostile_file().filter(bool), second=hostile_file().filter(bool))
def test_whatever_is_dropped_every_line_is_accounted_for_once_and_a_good_file_is_admitted(
    first: bytes, second: bytes, template: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("hostile") / "state"
    shutil.copytree(template, root)
    place = Place(root)
    try:
        place.drop("0.jsonl", first)
        place.drop("1.jsonl", second)
        place.drop("2-good.jsonl", b'{"prompt":"Who wrote Emma?","answer":"Jane Austen"}')
        receipts = {receipt.file: receipt for receipt in place.take()}
        assert place.intake.problems == ()
        assert receipts["2-good.jsonl"].accepted == 1
        for name, data in (("0.jsonl", first), ("1.jsonl", second)):
            receipt = receipts[name]
            if receipt.already_known:
                continue
            report = validate_file(_kept(place, name, data))
            total = report.accepted + report.quarantined
            assert receipt.accepted + receipt.quarantined == total
            _each_line_once(place, receipt)
        assert len(place.ledger.facts.find()) == place.rows("sum(op <> 'retract')")[0][0]
        place.restart()
        assert place.take() == []
        assert place.intake.problems == ()
        assert place.ledger.events.verify_chain() > 0
    finally:
        place.ledger.close()
        shutil.rmtree(root)


def _kept(place: Place, name: str, data: bytes) -> Path:
    path = place.layout.root / name
    path.write_bytes(data)
    return path


def _each_line_once(place: Place, receipt: Receipt) -> None:
    assert receipt.batch is not None
    bad = [q.line for q in place.ledger.quarantine.lines(receipt.batch)]
    assert len(bad) == len(set(bad)) == receipt.quarantined
    stored = place.ledger.db.one(
        "SELECT count(*) FROM facts f JOIN batches b ON b.seq = f.batch WHERE b.id = ?",
        (receipt.batch,),
    )
    assert stored + receipt.duplicates == receipt.accepted


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(line=hostile_line(), number=st.integers(1, 2))
def test_whatever_a_line_holds_it_is_a_fact_that_can_be_stored_and_read_or_quarantined(
    line: bytes, number: int
) -> None:
    parsed = parse_line(line, number)
    if isinstance(parsed, Quarantined):
        assert Quarantined.model_validate_json(parsed.model_dump_json()) == parsed
    else:
        assert Fact.model_validate_json(parsed.model_dump_json()) == parsed


ITEM = st.dictionaries(
    st.sampled_from(
        ["id", "title", "summary", "content_text", "url", "author", "authors", "date_published"]
    ),
    st.sampled_from([*HOSTILE, "Widget 2.1 released", "Wid\ud800get 2.1 released"]),
    max_size=5,
)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(items=st.lists(ITEM, max_size=5), escaped=st.booleans())
def test_whatever_a_json_feed_holds_every_entry_is_one_line(
    items: list[dict[str, Any]], escaped: bool
) -> None:
    data = json.dumps({"items": items}, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    lines = lines_of_feed(data, "json-feed", [RULE], "news").splitlines()
    assert len(lines) == len(items)
    for number, line in enumerate(lines, 1):
        parse_line(line, number).model_dump_json()


def _rss(title: str, date: str = "Thu, 01 Jan 2026 00:00:00 GMT") -> bytes:
    item = f"<item><title>{title}</title><pubDate>{date}</pubDate></item>"
    return f'<rss version="2.0"><channel><title>t</title>{item}</channel></rss>'.encode()


@pytest.mark.parametrize(
    "document",
    [
        _rss("Widget 2.1 released", "Fri, 31 Dec 9999 23:59:59 -0100"),
        _rss("Widget 2.1 released", "Mon, 01 Jan 0001 00:00:00 +0100"),
        _rss("Wid&#xD800;get 2.1 released"),
        _rss("Wid&#0;get 2.1 released"),
        _rss("Widget &#x2028; 2.1 released"),
        _rss("<b>" * 3000 + "Widget 2.1 released"),
        _rss("Widget " + "9" * 5000 + " released"),
        b"\xef\xbb\xbf" + _rss("Widget 2.1 released"),
        b"\0" + _rss("Widget 2.1 released"),
    ],
)
def test_whatever_an_xml_feed_holds_its_entries_are_lines_or_the_poll_has_failed(
    document: bytes,
) -> None:
    try:
        lines = lines_of_feed(document, "rss", [RULE], "news").splitlines()
    except FeedFailed:
        return
    for number, line in enumerate(lines, 1):
        parse_line(line, number).model_dump_json()


# --- ids ---------------------------------------------------------------------------------------


def version(answer: str, **more: str) -> list[dict[str, Any]]:
    return [{"id": "bt-1", "prompt": "What is the capital of Bhutan?", "answer": answer, **more}]


def test_a_third_version_stands_although_the_first_was_erased(place: Place) -> None:
    place.taken("1.jsonl", version("A"))
    place.taken("2.jsonl", version("B"))
    place.retract_and_erase("bt-1")
    receipt = place.taken("3.jsonl", version("C"))
    assert (receipt.accepted, receipt.duplicates) == (1, 0)
    assert place.rows("id, answer, validity, replaced_by")[1:] == [
        ("bt-1~2", "B", "superseded", "bt-1~3"),
        ("bt-1~3", "C", "valid", None),
    ]
    assert place.waiting() == ["C"]


def test_an_erased_id_is_given_to_no_other_fact(place: Place) -> None:
    place.taken("1.jsonl", version("A"))
    first = place.retract_and_erase("bt-1")
    place.taken("2.jsonl", version("B"))
    assert [row[0] for row in place.rows("id")] == [first, "bt-1~2"]
    second = place.retract_and_erase("bt-1~2")
    place.taken("3.jsonl", version("C"))
    assert [row[0] for row in place.rows("id")] == [first, second, "bt-1~3"]
    assert place.ledger.retractions.get("bt-1").handle == first
    assert place.ledger.retractions.get("bt-1~2").handle == second


def test_a_fact_without_an_id_of_its_own_comes_back_under_a_new_id_after_its_erasure(
    place: Place,
) -> None:
    place.taken("1.jsonl", GOOD)
    ((identity,),) = place.rows("id")
    place.retract_and_erase(identity)
    assert place.taken("2.jsonl", GOOD.replace(b"}", b" }")).accepted == 1
    assert place.rows("id")[1:] == [(f"{identity}~2",)]


def test_what_marks_an_erased_id_does_not_tell_it(place: Place) -> None:
    lines = [{"id": "employee-1234", "prompt": "What does Kim earn?", "answer": "a lot"}]
    place.taken("1.jsonl", lines)
    place.retract_and_erase("employee-1234")
    place.ledger.erasure.compact()
    place.ledger.close()
    assert b"employee-1234" not in place.layout.ledger.read_bytes()


def test_the_same_retraction_twice_in_one_file_is_two_lines_in_the_ledger(place: Place) -> None:
    gone = [{"op": "retract", "id": "bt-1"}]
    receipt = place.taken("1.jsonl", version("A") + gone + version("B") + gone)
    assert (receipt.accepted, receipt.quarantined) == (4, 0)
    assert place.rows("answer, validity, op") == [
        ("A", "retracted", "assert"),
        ("", "valid", "retract"),
        ("B", "retracted", "assert"),
        ("", "valid", "retract"),
    ]
    assert len(place.ledger.retractions.all()) == 2


def test_a_fact_whose_id_is_taken_is_never_swallowed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.taken("1.jsonl", GOOD)
    ((taken,),) = place.rows("id")
    rule_each = admit.rule_each

    def colliding(facts: list[Fact], *rest: Any) -> Any:
        return [(f.model_copy(update={"id": taken}), r) for f, r in rule_each(facts, *rest)]

    monkeypatch.setattr(admit, "rule_each", colliding)
    receipt = place.taken("2.jsonl", [{"prompt": "What is 2?", "answer": "two"}])
    assert (receipt.accepted, receipt.quarantined) == (0, 1)
    assert receipt.bad_lines[0].kind == "unexpected"
    assert "facts.id" in receipt.bad_lines[0].reason
    assert place.answers() == ["Thimphu"]


def test_a_fact_cannot_supersede_what_is_not_there_or_itself(place: Place) -> None:
    place.taken("1.jsonl", version("A"))
    before = place.rows("*"), place.ledger.events.verify_chain()
    arriving = intake_module.Batch(
        id="e" * 32, name="x", received_at=START, source="inbox", accepted=0, quarantined=0
    )
    place.ledger.admission.begin_batch(arriving)
    fact = Fact(id="bt-1~2", prompt="What is the capital of Bhutan?", answer="B")
    for replaced in ("nobody", "bt-1~2"):
        ruling = admit.Ruling(relation=admit.FactRelation.SUPERSEDES, replaced=(replaced,))
        with pytest.raises(PaloradError, match=r"ledger\.db: .*nothing of the change was kept"):
            place.ledger.admission.append_facts(arriving.id, [(fact, ruling)], [], START, line=1)
    assert (place.rows("*"), place.ledger.events.verify_chain()) == before


def test_a_line_is_quarantined_once(place: Place) -> None:
    arriving = intake_module.Batch(
        id="e" * 32, name="x", received_at=START, source="inbox", accepted=0, quarantined=0
    )
    place.ledger.admission.begin_batch(arriving)
    bad = Quarantined(line=1, kind="date", reason="no date")
    with pytest.raises(PaloradError, match="quarantine"):
        place.ledger.admission.append_facts(arriving.id, [], [bad, bad], START, line=1)
    assert place.ledger.batches.get(arriving.id).quarantined == 0


def test_a_plan_takes_up_all_that_it_is_to_learn_or_is_not_made(place: Place) -> None:
    place.taken("1.jsonl", version("A"))
    with pytest.raises(PaloradError, match="nothing of the change was kept"):
        place.ledger.plans.create(
            PlanKind.LEARN,
            parent=0,
            fact_ids=["bt-1", "nobody"],
            rank=4,
            seed=0,
            because="",
            now=START,
        )
    assert place.ledger.plans.heads() == ()
    assert place.waiting() == ["A"]


def test_the_ledgers_own_triggers_and_constraints_speak_in_one_line(place: Place) -> None:
    place.ledger.events.record("test", "subject", {}, START)
    with pytest.raises(PaloradError, match="append-only"), place.ledger.db.write("test"):
        place.ledger.db.do("UPDATE events SET kind = 'x'")
