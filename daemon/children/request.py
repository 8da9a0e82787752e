"""What a child is asked for, as files: a record, and beside it the facts, row by row.

A request may hold every fact there is. So its rows are written as they are read from the ledger,
and neither the daemon's memory nor one long call of the interpreter grows with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from pydantic import BaseModel

from adapters import files
from policies.errors import PaloradError

RECORD: Final = "request.json"
ROWS: Final = "facts.jsonl"
Rows: TypeAlias = Mapping[str, Iterable[str]]
"""By the name of a field that holds a list ("evaluation.facts" lies deeper), its items as JSON."""


class RowsMissing(PaloradError):
    """A request whose rows are gone, or not all there."""


def write(workdir: Path, record: BaseModel, rows: Rows) -> None:
    """Put both files in place, the record last; the last line of the rows is their number."""
    remove_rows(workdir)
    count = 0
    with files.replacing(workdir / ROWS) as stream:
        for field, items in rows.items():
            for item in items:
                stream.write(f'["{field}", {item}]\n'.encode())
                count += 1
        stream.write(f"{count}\n".encode())
    files.write_text(workdir / RECORD, record.model_dump_json(indent=1))


def read(workdir: Path) -> str:
    """The whole request as JSON text.

    Raises `RowsMissing` where it would be less than was asked: a candidate that is judged without
    its facts could pass.
    """
    text, path = (workdir / RECORD).read_text(encoding="utf-8"), workdir / ROWS
    lines = path.read_bytes().splitlines() if path.exists() else []
    if not lines or lines[-1] != b"%d" % (len(lines) - 1):
        raise RowsMissing(
            f"{path}: the facts that belong to {RECORD} are not there, or not all; "
            "they are written again with the next try"
        )
    return with_rows(text, lines[:-1])


def with_rows(record: str, rows: Iterable[str | bytes]) -> str:
    """A record's JSON text with each row at the end of the list that it belongs to."""
    tree = json.loads(record)
    for row in rows:
        field, item = json.loads(row)
        *above, last = field.split(".")
        inner: dict[str, Any] = tree
        for name in above:
            inner = inner[name]
        inner.setdefault(last, []).append(item)
    return json.dumps(tree)


def remove_rows(workdir: Path) -> None:
    """Remove the facts of a request that nobody reads any more; the record tells what it was."""
    (workdir / ROWS).unlink(missing_ok=True)
