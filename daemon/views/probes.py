"""The probe in use: what is protected, and how far its seeds agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from policies.records import Record


class MatrixView(Record):
    """One matrix: its critical components, how far two seeds agree on them, and how many of its
    input directions are protected."""

    name: str
    inputs: int
    outputs: int
    critical: int
    overlap: float
    chance: float
    protected: int


class ProbeView(Record):
    """`/api/probe`; `fitted` is False before the first probe."""

    fitted: bool
    kind: str
    form: str
    share: float
    serve: str
    path: str = ""
    base: str = ""
    informative: bool = False
    overlap: float = 0.0
    chance: float = 0.0
    examples: int = 0
    loss_before: float | None = None
    loss_after: tuple[float, ...] = ()
    matrices: tuple[MatrixView, ...] = ()


def probe_view(ledger: Ledger, settings: Settings) -> ProbeView:
    """The probe that the daemon uses, as its card says."""
    common = ProbeView(
        fitted=False,
        kind=settings.protection.kind,
        form=settings.protection.form,
        share=settings.protection.share,
        serve=settings.probe.serve,
    )
    found = _card(ledger.meta.get("probe"), settings.state_dir)
    if found is None:
        return common
    path, card = found
    skill = card.get("skill", {})
    return common.model_copy(
        update={
            "fitted": True,
            "path": str(path),
            "base": str(card.get("base", "")),
            "informative": bool(card.get("informative")),
            "overlap": card["overlap"]["jaccard"],
            "chance": card["overlap"]["chance"],
            "examples": skill.get("examples", 0),
            "loss_before": skill.get("loss_before"),
            "loss_after": tuple(skill.get("loss_after", ())),
            "matrices": tuple(
                MatrixView(
                    name=name.removeprefix("model.layers."),
                    inputs=matrix["inputs"],
                    outputs=matrix["outputs"],
                    critical=matrix["critical"],
                    overlap=matrix["overlap"],
                    chance=matrix["chance"],
                    protected=_protected(settings, matrix["inputs"]),
                )
                for name, matrix in card["matrices"].items()
            ),
        }
    )


def _protected(settings: Settings, inputs: int) -> int:
    used = settings.protection.kind in ("activations", "svf+activations")
    return round(settings.protection.share * inputs) if used else 0


def _card(remembered: str | None, state_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """The directory of the remembered probe and its card; None where it cannot be read."""
    try:
        path = state_dir / json.loads(remembered or "")["report"]["probe"]
        card = json.loads((path / "probe.json").read_text())
        return (path, card) if "overlap" in card and "matrices" in card else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
