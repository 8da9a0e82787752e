"""Paraphrases that the live model gave, kept by fact."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from daemon.ledger.database import Database, chunks, marks
from policies.records import Fact


class ParaphraseCache:
    """What was asked once is never asked again, whatever came of it."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def missing(self, plan_id: int, most: int) -> tuple[Fact, ...]:
        """Of the first `most` facts that a plan learns those that were never asked about."""
        rows = self._db.rows(
            "SELECT f.body FROM (SELECT fact FROM plan_facts WHERE plan = ?"
            " ORDER BY fact LIMIT ?) p JOIN facts f ON f.seq = p.fact"
            " WHERE p.fact NOT IN (SELECT fact FROM paraphrases) ORDER BY p.fact",
            (plan_id, most),
        )
        return tuple(Fact.model_validate_json(row[0]) for row in rows)

    def keep(self, found: Mapping[str, Sequence[str]]) -> None:
        """Remember what was found for each fact, nothing too."""
        with self._db.write("keep_paraphrases"):
            self._db.do_all(
                "INSERT OR REPLACE INTO paraphrases (fact, paraphrases)"
                " SELECT seq, ? FROM facts WHERE id = ?",
                [(json.dumps(list(texts)), fact_id) for fact_id, texts in found.items()],
            )

    def of(self, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The paraphrases found for facts, without those that have none."""
        return {
            fact_id: tuple(json.loads(texts))
            for chunk in chunks(ids)
            for fact_id, texts in self._db.rows(
                "SELECT f.id, p.paraphrases FROM paraphrases p JOIN facts f ON f.seq = p.fact"
                f" WHERE p.paraphrases <> '[]' AND f.id IN ({marks(chunk)})",
                chunk,
            )
        }
