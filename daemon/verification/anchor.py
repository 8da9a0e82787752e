"""The anchor of history: the head of the chain of events, signed and kept outside the ledger."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from adapters import files
from daemon.config.layout import Layout
from policies.errors import PaloradError
from policies.records import Record

KEY_BYTES: Final = 32
OTHERS: Final = 0o077


class AnchorBroken(PaloradError):
    """The signed head is missing, damaged, or not signed with this key."""


class Head(Record):
    """Number and hash of the newest event when it was signed.

    `accepted` says why a person accepted a history that differs from what was signed before.
    `mac` is HMAC-SHA256 (RFC 2104) over the others.
    """

    seq: int
    hash: str
    at: str
    accepted: str = ""
    mac: str = ""


def signed(key: bytes, head: Head) -> Head:
    """The head with its signature."""
    return head.model_copy(update={"mac": _mac(key, head)})


def is_signed(key: bytes, head: Head) -> bool:
    """Whether the signature is of this head and this key."""
    return hmac.compare_digest(head.mac, _mac(key, head))


def _mac(key: bytes, head: Head) -> str:
    text = "\0".join(("palorad head", str(head.seq), head.hash, head.at, head.accepted))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def read_key(layout: Layout) -> bytes:
    """The key; raises `AnchorBroken` where there is none, and `OSError`."""
    try:
        key = layout.anchor_key.read_bytes().strip()
    except FileNotFoundError:
        key = b""
    if len(key) < KEY_BYTES:
        raise AnchorBroken(f"{layout.anchor_key}: the key that signs the history is missing")
    return key


def make_key(layout: Layout) -> bytes:
    """A new key in the place of what is there, readable by its owner only."""
    part = layout.anchor_key.with_suffix(".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secrets.token_hex(KEY_BYTES) + "\n")
    files.put_in_place(part, layout.anchor_key)
    return read_key(layout)


def read(layout: Layout) -> Head:
    """The signed head; raises `AnchorBroken` and `OSError`."""
    try:
        text = layout.anchor.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise AnchorBroken(f"{layout.anchor}: the signed head of the history is missing") from None
    except UnicodeDecodeError:
        text = ""
    head = parsed(text)
    if head is None or not is_signed(read_key(layout), head):
        raise AnchorBroken(f"{layout.anchor}: is not signed with {layout.anchor_key.name}")
    return head


def write(layout: Layout, head: Head) -> None:
    """Put the signed head in its place, durably."""
    files.write_text(layout.anchor, line_of(head))


def line_of(head: Head) -> str:
    """A head as one line of JSON."""
    return json.dumps(head.model_dump(), ensure_ascii=False) + "\n"


def parsed(line: str) -> Head | None:
    """What a line holds, if it is a head."""
    try:
        return Head.model_validate(json.loads(line))
    except (ValueError, ValidationError):
        return None


def kept(path: Path) -> Iterator[Head | None]:
    """The heads of a file outside, one a line, None for a line that is none; `OSError`.

    A last line that was not written to its end is left out.
    """
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            head = parsed(line)
            if head is not None or line.endswith("\n"):
                yield head
