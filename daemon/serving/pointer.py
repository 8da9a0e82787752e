"""The pointer of the stable name: one small file, replaced atomically."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from pydantic import ValidationError

from adapters import files
from policies.records import Record


class Pointer(Record):
    """What the alias stands for; `revision` 0 is the bare base."""

    alias: str
    model: str
    revision: int


def read(path: Path) -> Pointer | None:
    """What the file says; None when it is missing or damaged."""
    try:
        return Pointer.model_validate(json.loads(path.read_text()))
    except (OSError, ValueError, ValidationError):
        return None


def write(path: Path, pointer: Pointer) -> None:
    """Replace the file: a reader sees the old or the new content, also after a power cut."""
    files.write_text(path, json.dumps(pointer.model_dump()) + "\n")


def ensure_admin_key(path: Path) -> str:
    """palorad's own key, readable by its owner only; made at the start if there is none."""
    key = path.read_text().strip() if path.exists() else ""
    if not key:
        part = path.with_name(f".{path.name}.tmp")
        part.unlink(missing_ok=True)
        key = secrets.token_hex(32)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(f"{key}\n")
        files.put_in_place(part, path)
    return key
