"""The pointer of the stable name: one small file, replaced atomically."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from adapters import files
from policies.records import Record


class Canary(Record):
    """A revision that answers a share of the requests, from 0 to 1, before it may take all."""

    model: str
    revision: int
    share: float


class Pointer(Record):
    """What the alias stands for; `revision` 0 is the bare base."""

    alias: str
    model: str
    revision: int
    canary: Canary | None = None

    def names(self, model: str) -> bool:
        """Whether users may be answered from this model."""
        return model == self.model or (self.canary is not None and model == self.canary.model)

    @property
    def bare(self) -> Pointer:
        """The same without a canary."""
        return self.model_copy(update={"canary": None})


def read(path: Path) -> Pointer | None:
    """What the file says; None when it is missing or damaged."""
    try:
        return Pointer.model_validate(json.loads(path.read_text()))
    except (OSError, ValueError, ValidationError):
        return None


def write(path: Path, pointer: Pointer) -> None:
    """Replace the file: a reader sees the old or the new content, also after a power cut."""
    files.write_text(path, json.dumps(pointer.model_dump(exclude_none=True)) + "\n")
