"""What the demonstration is given: a model, facts for it, its suites and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Scenario:
    """One model with its files of facts; its suites and replay lie in `data` in its folder.

    `settings` are those in which it differs from the repository's config.toml, by section.
    """

    name: str
    model: Path
    facts: Path
    files: int
    """How many of the files in `facts` are learnt."""
    false_facts: Path
    missing: str
    """What to do where a part is missing."""
    note: str = ""
    """What is said of it at the start."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    suite: Mapping[str, Any] = field(default_factory=dict)
    """Keys in which every suite differs."""
    fact_grader: str = "normalised"
    skill_grader: str = "final"
    fact_tokens: int = 24
    skill_tokens: int = 160
    batch_s: float = 900.0
    """The longest that one file may take."""

    @property
    def data(self) -> Path:
        """The folder of its suites and of what is replayed."""
        return self.model / "data"


MINI: Final = Scenario(
    name="mini",
    model=ROOT / "models" / "palorad-mini",
    facts=ROOT / "examples" / "facts",
    files=3,
    false_facts=ROOT / "examples" / "false-arithmetic.jsonl",
    missing="the demo runs from a clone of the repository",
)

_SMOL: Final = ROOT / "models" / "smol"

SMOL: Final = Scenario(
    name="smol",
    model=_SMOL,
    facts=ROOT / "examples" / "handbook",
    files=1,
    false_facts=ROOT / "examples" / "false-plurals.jsonl",
    missing="make it with 'make smol-known'",
    note="SmolLM2-135M-Instruct; its skill, asked as reasoning, is the plural of nouns",
    settings={
        "probe": {"skill": str(_SMOL / "data" / "skill.jsonl"), "path": ""},
        "train": {
            "replay": {
                "known": str(_SMOL / "data" / "known-replay.jsonl"),
                "reasoning": str(_SMOL / "data" / "skill.jsonl"),
                # Writing the missing ones would take minutes before the first step.
                "min_traces": 0,
            }
        },
        # Suites of some hundred items, which a CPU answers in minutes, cannot rule out less.
        "gate": {
            "reasoning_margin": 0.05,
            "locality_margin": 0.1,
            "retention_margin": 0.2,
            "aa_sample": 40,
        },
        "server": {"request_timeout_s": 600},
    },
    suite={"grader": "contains", "max_tokens": 24},
    fact_grader="contains",
    skill_grader="contains",
    skill_tokens=24,
    batch_s=3600.0,
)

SCENARIOS: Final = {one.name: one for one in (MINI, SMOL)}
