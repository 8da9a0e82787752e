"""Rows of the quarantine: a batch's first bad lines in words, all further ones by their numbers."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from daemon.ledger.database import Database
from policies.facts.spans import numbers_in, spans
from policies.records import Quarantined

LAST_LINE: Final = 2**63 - 1


class BadLines:
    """What one batch after the other has in quarantine; every line is there once at most.

    The first `kept` lines of a batch are rows with reason and text. Of further ones a row for each
    piece of the batch has the numbers by kind: their text is in the archive.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, batch: int, found: Sequence[Quarantined], kept: int) -> None:
        """Within a change: put lines of a batch into quarantine."""
        if not found:
            return
        rows = self._db.one("SELECT count(*) FROM quarantine WHERE batch = ?", (batch,))
        room = max(0, kept - int(rows))
        stored = self._db.do_all(
            "INSERT INTO quarantine (batch, line, kind, reason, text) VALUES (?, ?, ?, ?, ?)",
            [(batch, q.line, q.kind, q.reason, q.text) for q in found[:room]],
        )
        self._db.expect(stored, len(found[:room]), "lines are quarantined")
        self._add_numbers(batch, {q.line: q.kind for q in found[room:]})

    def kinds(self, batch: int, first: int = 1, last: int = LAST_LINE) -> dict[int, str]:
        """Kind by number of the lines in quarantine from `first` to `last`."""
        found = {
            int(line): str(kind)
            for line, kind in self._db.rows(
                "SELECT line, kind FROM quarantine WHERE batch = ? AND line BETWEEN ? AND ?",
                (batch, first, last),
            )
        }
        for _, held in self._numbered(batch, first, last):
            found |= {line: kind for line, kind in held.items() if first <= line <= last}
        return found

    def last(self, batch: int) -> int:
        """The last line in quarantine; 0 where there is none."""
        found = self._db.one(
            "SELECT max((SELECT coalesce(max(line), 0) FROM quarantine WHERE batch = ?1),"
            " (SELECT coalesce(max(last), 0) FROM quarantine_numbers WHERE batch = ?1))",
            (batch,),
        )
        return int(found)

    def numbered(self, batch: int) -> dict[str, int]:
        """How many lines of each kind are there by their numbers only."""
        counts: defaultdict[str, int] = defaultdict(int)
        for _, held in self._numbered(batch, 1, LAST_LINE):
            for kind in held.values():
                counts[kind] += 1
        return dict(counts)

    def take_back(self, batch_id: str, line: int) -> None:
        """Within a change: the lines of a batch from this one on leave quarantine."""
        batch = int(self._db.one("SELECT seq FROM batches WHERE id = ?", (batch_id,)))
        self.take_out(batch, list(self.kinds(batch, line)))

    def take_out(self, batch: int, lines: Collection[int]) -> int:
        """Within a change: these lines leave quarantine; how many of them were there."""
        if not lines:
            return 0
        kinds = self._remove(batch, lines)
        self._db.do(
            "UPDATE batches SET quarantined = quarantined - ?, conflicts = conflicts - ?"
            " WHERE seq = ?",
            (len(kinds), sum(kind in ("conflict", "ask") for kind in kinds), batch),
        )
        return len(kinds)

    def _remove(self, batch: int, lines: Collection[int]) -> list[str]:
        wanted, first, last = set(lines), min(lines), max(lines)
        there = {n: kind for n, kind in self.kinds(batch, first, last).items() if n in wanted}
        self._db.do_all(
            "DELETE FROM quarantine WHERE batch = ? AND line = ?", [(batch, n) for n in there]
        )
        for row, held in list(self._numbered(batch, first, last)):
            left = {line: kind for line, kind in held.items() if line not in wanted}
            if len(left) < len(held):
                self._db.do(
                    "DELETE FROM quarantine_numbers WHERE batch = ? AND first = ?", (batch, row)
                )
                self._add_numbers(batch, left)
        return list(there.values())

    def _add_numbers(self, batch: int, kind_of: Mapping[int, str]) -> None:
        if not kind_of:
            return
        first, by_kind = min(kind_of), defaultdict(list)
        for line, kind in kind_of.items():
            by_kind[kind].append(line - first)  # small numbers are short
        self._db.do(
            "INSERT INTO quarantine_numbers (batch, first, last, kinds) VALUES (?, ?, ?, ?)",
            (batch, first, max(kind_of), json.dumps({k: spans(n) for k, n in by_kind.items()})),
        )

    def _numbered(self, batch: int, first: int, last: int) -> Iterator[tuple[int, dict[int, str]]]:
        for begin, kinds in self._db.rows(
            "SELECT first, kinds FROM quarantine_numbers WHERE batch = ? AND first <= ?"
            " AND last >= ? ORDER BY first",
            (batch, last, first),
        ):
            yield (
                int(begin),
                {
                    begin + offset: kind
                    for kind, text in json.loads(kinds).items()
                    for offset in numbers_in(text)
                },
            )
