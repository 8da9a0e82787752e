"""Tensors that are found once for a base and kept: one file for each kind, the latest alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters import files


def load(path: Path) -> dict[str, Tensor] | None:
    """What lies there; None where nothing was written, or something broken."""
    try:
        found: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError):
        return None
    return found


def save(path: Path, tensors: Mapping[str, Tensor], kind: str) -> None:
    """Write it whole or not at all, in the place of others whose names begin with `kind`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    save_file(dict(tensors), temporary)
    files.put_in_place(temporary, path)
    for other in path.parent.glob(f"{kind}*"):
        if other != path:
            other.unlink(missing_ok=True)
