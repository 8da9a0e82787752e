"""What comes in takes room in proportion: bad lines beyond a limit are known by number and kind."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.intake.receipts import Receipt
from daemon.intake.validating import validate_file
from policies.facts.spans import numbers_in, spans
from tests.intake.test_intake import Place, lines

MB = 2**20


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, max_quarantined=10)
    yield made
    made.ledger.close()


def size(place: Place) -> int:
    """Bytes of the ledger with its journal, free pages left out."""
    place.ledger.db.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return sum(path.stat().st_size for path in place.layout.root.glob("ledger.db*"))


def taken(place: Place, name: str, data: bytes) -> Receipt:
    place.drop(name, data)
    (receipt,) = place.pass_over()
    place.now += timedelta(seconds=10)
    return receipt


@pytest.mark.parametrize(
    "data",
    [b"x\n" * (MB // 32), b"x\n\n" * (MB // 48), b'x\n{"a":1}\n' * (MB // 160)],
    ids=["bad lines", "every other line blank", "two kinds in turn"],
)
def test_a_ledger_grows_by_less_than_the_bad_lines_that_come_in(place: Place, data: bytes) -> None:
    place.ledger.db.connection.execute("PRAGMA synchronous=OFF")
    before = size(place)
    receipt = taken(place, "bad.jsonl", data)
    expected = sum(bool(line.strip()) for line in data.split(b"\n"))
    assert (receipt.accepted, receipt.quarantined) == (0, expected)
    assert size(place) - before < len(data)
    assert receipt.bad_lines_left_out == expected - len(receipt.bad_lines)
    assert place.ledger.quarantine.line_numbers(receipt.batch or "") == {
        number for number, line in enumerate(data.split(b"\n"), 1) if line.strip()
    }


def test_each_bad_line_beyond_the_limit_is_known_once_by_number_and_kind(place: Place) -> None:
    data = lines(1) + b"bad\n" * 15 + b'{"prompt": "p"}\n' * 5 + b"\n" + lines(2)
    receipt = taken(place, "bad.jsonl", data)
    batch = receipt.batch or ""
    assert (receipt.accepted, receipt.quarantined) == (2, 20)
    assert [bad.line for bad in place.ledger.quarantine.lines(batch)] == list(range(2, 12))
    assert place.ledger.quarantine.numbered(batch) == {"not-json": 5, "missing": 5}
    kinds = [place.ledger.quarantine.kind(batch, line) for line in (11, 12, 16, 17, 21, 22, 23)]
    assert kinds == ["not-json"] * 3 + ["missing"] * 2 + [None] * 2


def test_lines_known_by_number_come_out_of_quarantine_like_any_other(tmp_path: Path) -> None:
    place = Place(tmp_path, max_quarantined=2, max_line_kb=1)
    data = lines(*range(250), source="x" * 2000) + b"bad\n"
    receipt = taken(place, "long.jsonl", data)
    assert receipt.batch is not None and receipt.quarantined == 251
    place.settings = place.settings.model_copy(update={"max_line_kb": 64})
    place.restart()
    assert place.retry(receipt.batch, line=200) == (1, 0)
    assert place.ledger.quarantine.kind(receipt.batch, 200) is None
    assert place.retry(receipt.batch) == (250, 1)
    assert place.ledger.quarantine.line_numbers(receipt.batch) == {251}
    batch = place.ledger.batches.get(receipt.batch)
    assert (batch.accepted, batch.quarantined) == (250, 1)
    place.ledger.close()


def test_memory_stays_small_where_bad_lines_reject_the_file(tmp_path: Path) -> None:
    place = Place(tmp_path, bad_lines="reject")
    place.drop("bad.jsonl", b"x\n" * 20_000)
    place.drop("small.jsonl", b"x\n")
    tracemalloc.start()
    try:
        receipts = place.pass_over()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert {r.error and r.error.split(" (")[0].split(" ", 1)[1] for r in receipts} == {
        "has bad lines, 20000 of 20000",
        "has bad lines, 1 of 1",
    }
    assert peak < 4 * MB
    place.ledger.close()


def test_validate_keeps_no_more_than_the_first_problems(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(b"x\n" * 5000)
    report = validate_file(file)
    assert report.quarantined == 5000
    assert [problem.line for problem in report.problems] == list(range(1, 1001))


@pytest.mark.parametrize(
    "data",
    [lines(1, 2, 3), json.dumps([json.loads(x) for x in lines(1, 2, 3).splitlines()]).encode()],
    ids=["lines", "a list"],
)
def test_a_file_of_too_many_lines_is_refused_as_it_is(tmp_path: Path, data: bytes) -> None:
    place = Place(tmp_path, max_lines=2)
    place.drop("many", data)
    (receipt,) = place.pass_over()
    assert receipt.error is not None and "has 3 lines; at most 2 are read" in receipt.error
    assert "intake.max_lines" in receipt.error
    assert place.left() == {"many", "many.rejected.json"}
    place.ledger.close()


@given(st.sets(st.integers(0, 500)))
def test_spans_hold_their_numbers(numbers: set[int]) -> None:
    assert list(numbers_in(spans(numbers))) == sorted(numbers)
