"""Checkpoints of a training run: written beside, fsynced, published by rename."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters import files

PREFIX = "checkpoint-"
DATA = "state.pt"


@dataclass(frozen=True, slots=True)
class Saved:
    """One checkpoint: the next step, the factors, the optimiser and small state."""

    step: int
    factors: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    state: Mapping[str, Any]


def save(folder: Path, fingerprint: str, saved: Saved) -> None:
    """Write a checkpoint of the run with this fingerprint and drop the earlier ones."""
    target = folder / f"{PREFIX}{saved.step:07}"
    temporary = folder / f".tmp-{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    files.make_folder(folder)
    temporary.mkdir()
    content = {"factors": dict(saved.factors), "optimizer": dict(saved.optimizer)}
    with files.replacing(temporary / DATA) as stream:
        torch.save(content, stream)
    manifest = {
        "step": saved.step,
        "fingerprint": fingerprint,
        "sha256": _sha256(temporary / DATA),
        "state": dict(saved.state),
    }
    files.write_json(temporary / "manifest.json", manifest)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    files.sync(folder)
    for other in folder.glob(f"{PREFIX}*"):
        if other != target:
            shutil.rmtree(other, ignore_errors=True)


def latest(folder: Path, fingerprint: str) -> Saved | None:
    """The newest whole checkpoint of the run with this fingerprint; others are passed over."""
    for path in sorted(folder.glob(f"{PREFIX}*"), reverse=True):
        try:
            manifest = json.loads((path / "manifest.json").read_text())
        except (OSError, ValueError):
            continue
        data = path / DATA
        if manifest.get("fingerprint") != fingerprint or not data.is_file():
            continue
        if _sha256(data) != manifest["sha256"]:
            continue
        content = torch.load(data, weights_only=True)
        return Saved(manifest["step"], content["factors"], content["optimizer"], manifest["state"])
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
