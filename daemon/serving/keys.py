"""The admin key's file: made whole or not at all, for its owner only."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

from adapters import files
from policies.errors import ConfigError

USABLE: Final = re.compile(rb"[!-~]{16,}\Z")


def read(path: Path) -> str:
    """A key that somebody else has made; `ConfigError` where there is none in the file."""
    try:
        raw = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not USABLE.match(raw):
        raise ConfigError(
            f"{path} holds no key: it must be 16 or more printable characters without a space"
        )
    return raw.decode()


def ensure(path: Path, fresh: Callable[[], str] = lambda: secrets.token_hex(32)) -> str:
    """palorad's own key, made by `fresh` where the file is missing, empty, cut off or no key.

    A crash leaves the file as it was or whole: it is written beside and put in place by a rename.
    Raises `OSError`.
    """
    try:
        raw = path.read_bytes().strip()
    except FileNotFoundError:
        raw = b""
    if not USABLE.match(raw):
        part = path.with_name(f".{path.name}.tmp")
        part.unlink(missing_ok=True)
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as stream:
                stream.write(fresh() + "\n")
            files.put_in_place(part, path)
        finally:
            part.unlink(missing_ok=True)
        raw = path.read_bytes().strip()
    return raw.decode()
