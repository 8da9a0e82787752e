"""Facts by likeness of words, quick however many there are."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Final

Rows = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]

RARE: Final = 2000
FEW: Final = 200
_TERMS: Final = (
    "CREATE VIRTUAL TABLE IF NOT EXISTS temp.terms USING fts5vocab(main, facts_text, instance)"
)
_NEAR: Final = (
    "SELECT f.body FROM facts_text t JOIN facts f ON f.seq = t.rowid"
    " WHERE facts_text MATCH ? ORDER BY rank LIMIT ?"
)
_ANY: Final = (
    "SELECT f.body FROM facts_text t JOIN facts f ON f.seq = t.rowid"
    " WHERE facts_text MATCH ? LIMIT ?"
)


def near(rows: Rows, text: str, limit: int) -> list[str]:
    """The bodies of facts that share words with `text`: those with all of them, then those with
    its rarest.

    A word that thousands of facts hold tells nothing, and ranking them all would take seconds;
    it only narrows what a rarer word finds.
    """
    counts = _counts(rows, _words(text))
    known = sorted((word for word in counts if counts[word]), key=counts.__getitem__)
    if not known:
        return []
    rare = [word for word in known if counts[word] <= RARE]
    found = _narrowed(rows, rare, known, limit) if rare else None
    if found is None:
        ranked = _NEAR if rare else _ANY
        found = [row[0] for row in rows(ranked, (" AND ".join(map(_quoted, known)), limit))]
    if len(found) < limit and rare:
        found += [row[0] for row in rows(_NEAR, (" OR ".join(map(_quoted, rare)), limit))]
    return list(dict.fromkeys(found))[:limit]


def _narrowed(
    rows: Rows, rare: Sequence[str], known: Sequence[str], limit: int
) -> list[str] | None:
    """The bodies with all rare words, those with most of the others first; None where they are too
    many to look at each.

    To have the index find the others as well would read all that it holds of them.
    """
    found = [row[0] for row in rows(_NEAR, (" AND ".join(map(_quoted, rare)), FEW + 1))]
    if len(found) > max(FEW, limit):
        return None
    words = frozenset(known)
    return sorted(found, key=lambda body: -len(words.intersection(_split(body))))[:limit]


def _counts(rows: Rows, words: Sequence[str]) -> dict[str, int]:
    """How often each word occurs, counted no further than needed to know that it is not rare."""
    rows(_TERMS, ())
    query = "SELECT count(*) FROM (SELECT 1 FROM temp.terms WHERE term = ? LIMIT ?)"
    return {word: int(rows(query, (word, RARE + 1))[0][0]) for word in words}


def _words(text: str) -> list[str]:
    """The words of a text as the index keeps them: in lower case, without marks."""
    return list(dict.fromkeys(_split(text)))[:32]


def _split(text: str) -> list[str]:
    plain = "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))
    return "".join(c if c.isalnum() else " " for c in plain.lower()).split()


def _quoted(word: str) -> str:
    return f'"{word}"'
