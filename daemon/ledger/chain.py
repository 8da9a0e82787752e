"""Hashes of the chain of events, and salted digests that stand for erased texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

GENESIS: Final = "0" * 64


def salted(salt: str, body: str) -> str:
    """SHA-256 of a text with its salt; without the salt the digest tells nothing of the text."""
    return hashlib.sha256(f"{salt}\0{body}".encode()).hexdigest()


def chained(prev: str, seq: int, at: str, kind: str, subject: str, digest: str) -> str:
    """Hash of an event and, through `prev`, of every event before it."""
    text = "\0".join((prev, str(seq), at, kind, subject, digest))
    return hashlib.sha256(text.encode()).hexdigest()


def row_digest(salt: bytes, values: Sequence[Any]) -> bytes:
    """SHA-256 of the values of a row with its salt."""
    return hashlib.sha256(salt + json.dumps(list(values)).encode()).digest()


def followed(before: str, digests: Iterable[bytes]) -> str:
    """One hash of rows in their order: `before` is that of the rows ahead of them, "" for none."""
    for digest in digests:
        before = hashlib.sha256(before.encode() + digest).hexdigest()
    return before
