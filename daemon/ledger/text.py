"""The search index over the facts' texts."""

from __future__ import annotations

from typing import Any, Final

from daemon.ledger.database import Database
from daemon.ledger.search import near
from policies.records import Fact

INDEXED: Final = "indexed"


class TextIndex:
    """Makes facts searchable and finds them."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def index(self, limit: int = 2000) -> int:
        """Make up to `limit` more facts searchable; how many were. Called while idle."""
        done = int(self._db.meta("indexed") or 0)
        rows = self._db.rows(
            "SELECT seq, body FROM facts WHERE seq > ? AND op <> 'retract' ORDER BY seq LIMIT ?",
            (done, limit),
        )
        if not rows:
            return 0
        with self._db.write("index_text"):
            self._db.do_all(
                "INSERT INTO facts_text (rowid, prompt, answer, subject, relation, paraphrases)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                [text_row(seq, Fact.model_validate_json(body)) for seq, body in rows],
            )
            self._db.set_meta("indexed", str(rows[-1][0]))
        return len(rows)

    def search(self, text: str, limit: int = 20) -> tuple[Fact, ...]:
        """Facts about a prompt: the same paraphrase first, then by likeness of words."""
        key = " ".join(text.split()).casefold()
        exact = self._db.rows(
            "SELECT body FROM facts WHERE (key = ? OR id = ?) AND op <> 'retract'"
            " ORDER BY seq DESC LIMIT ?",
            (key, text, limit),
        )
        bodies = [*(row[0] for row in exact), *near(self._db.rows, text, limit)]
        found = {fact.id: fact for fact in map(Fact.model_validate_json, bodies)}
        return tuple(found.values())[:limit]


def text_row(seq: int, fact: Fact) -> tuple[Any, ...]:
    """A fact as the search index holds it."""
    paraphrases = "\n".join((*fact.paraphrases, *fact.eval_prompts))
    return (seq, fact.prompt, fact.answer, fact.subject or "", fact.relation or "", paraphrases)
