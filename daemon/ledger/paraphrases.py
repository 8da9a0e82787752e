"""Paraphrases that the live model gave, kept by fact."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from daemon.ledger.facts import LedgerFacts, chunks, marks
from policies.records import Fact


class LedgerParaphrases(LedgerFacts):
    """What was asked once is never asked again, whatever came of it."""

    def without_paraphrases(self, plan_id: int, most: int) -> tuple[Fact, ...]:
        """Of the first `most` facts that a plan learns those that were never asked about."""
        rows = self._rows(
            "SELECT f.body FROM (SELECT fact FROM plan_facts WHERE plan = ? AND role = 'learn'"
            " ORDER BY fact LIMIT ?) p JOIN facts f ON f.seq = p.fact"
            " WHERE p.fact NOT IN (SELECT fact FROM paraphrases) ORDER BY p.fact",
            (plan_id, most),
        )
        return tuple(Fact.model_validate_json(row[0]) for row in rows)

    def keep_paraphrases(self, found: Mapping[str, Sequence[str]]) -> None:
        """Remember what was found for each fact, nothing too."""
        with self._write("keep_paraphrases"):
            self._do_all(
                "INSERT OR REPLACE INTO paraphrases (fact, paraphrases)"
                " SELECT seq, ? FROM facts WHERE id = ?",
                [(json.dumps(list(texts)), fact_id) for fact_id, texts in found.items()],
            )

    def paraphrases(self, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The paraphrases found for facts, without those that have none."""
        return {
            fact_id: tuple(json.loads(texts))
            for chunk in chunks(ids)
            for fact_id, texts in self._rows(
                "SELECT f.id, p.paraphrases FROM paraphrases p JOIN facts f ON f.seq = p.fact"
                f" WHERE p.paraphrases <> '[]' AND f.id IN ({marks(chunk)})",
                chunk,
            )
        }
