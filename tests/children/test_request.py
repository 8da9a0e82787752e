"""A request is a record and rows of facts, read as one; the rows may go, the record stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.children import request
from policies.records import Fact, Record

ONE = Fact(id="one", prompt="What is\u2028the “first”?", answer="1\n")
TWO = Fact(id="two", prompt="two?", answer="2")


class Inner(Record):
    """What lies deeper."""

    name: str
    earlier: tuple[tuple[str, Fact], ...] = ()


class Asked(Record):
    """A request with facts at two depths."""

    rank: int
    facts: tuple[Fact, ...] = ()
    inner: Inner


RECORD = Asked(rank=4, inner=Inner(name="x"))
ROWS = {
    "facts": [ONE.model_dump_json(), TWO.model_dump_json(exclude_defaults=True)],
    "inner.earlier": [f'["b1", {TWO.model_dump_json()}]'],
}


def test_what_was_written_in_rows_is_read_as_one(tmp_path: Path) -> None:
    request.write(tmp_path, RECORD, ROWS)
    found = Asked.model_validate_json(request.read(tmp_path))
    assert found == Asked(rank=4, facts=(ONE, TWO), inner=Inner(name="x", earlier=(("b1", TWO),)))


def test_a_later_request_holds_nothing_of_the_one_before(tmp_path: Path) -> None:
    request.write(tmp_path, RECORD, ROWS)
    request.write(tmp_path, RECORD, {"facts": []})
    assert Asked.model_validate_json(request.read(tmp_path)) == RECORD
    request.write(tmp_path, RECORD, ROWS)
    request.write(tmp_path, RECORD, {})
    assert Asked.model_validate_json(request.read(tmp_path)) == RECORD


@pytest.mark.parametrize("left", [None, 0, 1, 2])
def test_a_child_is_given_all_that_was_asked_or_nothing(tmp_path: Path, left: int | None) -> None:
    request.write(tmp_path, RECORD, ROWS)
    path = tmp_path / request.ROWS
    lines = path.read_bytes().splitlines(keepends=True)
    path.unlink()
    if left is not None:
        path.write_bytes(b"".join(lines[:left]))
    with pytest.raises(request.RowsMissing, match="not all"):
        request.read(tmp_path)


def test_without_its_facts_the_request_still_tells_what_was_asked(tmp_path: Path) -> None:
    request.write(tmp_path, RECORD, ROWS)
    request.remove_rows(tmp_path)
    request.remove_rows(tmp_path)
    record = (tmp_path / request.RECORD).read_text()
    assert Asked.model_validate_json(record) == RECORD
    assert ONE.id not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_a_request_whose_facts_cannot_be_read_is_not_written(tmp_path: Path) -> None:
    def broken() -> Iterator[str]:
        yield ROWS["facts"][0]
        raise OSError("the ledger went away")

    with pytest.raises(OSError, match="went away"):
        request.write(tmp_path, RECORD, {"facts": broken()})
    assert not list(tmp_path.iterdir())
