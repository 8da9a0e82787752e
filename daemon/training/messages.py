"""What the learning children are asked for and what they report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from daemon.config.sections import BatchPreset, ProbeSettings, ProtectionSettings
from daemon.ledger.records import Adapter, Served
from policies.facts.paraphrases import ParaphrasePolicy
from policies.records import Fact, PlanKind, Record


class ProbeRequest(Record):
    """Have a probe of the base at `model_dir`: a fitted one that belongs to it, or fit it now.

    `probes` and `experts` are the directories that new ones are published in. A new one keeps what
    `protection` asks for, and a fitted one that keeps less is not used.
    """

    model_dir: Path
    probes: Path
    experts: Path
    settings: ProbeSettings
    protection: ProtectionSettings = ProtectionSettings()


class ProbeReport(Record):
    """The probe in use and the checkpoint that is served and trained on.

    `served_sha256` is the content hash of that checkpoint; `fitted` says whether the probe was
    fitted now.
    """

    probe: Path
    served_dir: Path
    served_sha256: str
    base_sha256: str
    fitted: bool
    seconds: float


class TrainRequest(Record):
    """Train one adapter and compose what would be served.

    `number` is the number that the revision would get, `lineage` the directories of the adapters
    it stands on (for a rebuild none), `start` of those from which it goes on in their place,
    `facts` what it has to learn, `replay` what it replays, each in the paraphrases that
    `paraphrases` gives it, and the other way round where `reversed_questions` does; each new one
    is shown `epochs` times or more, with as much text as `batch_preset` says, beside at least
    `min_traces` reasoning traces; `stacked` says that adapters stand on each other.
    """

    kind: PlanKind
    number: int
    rank: int
    seed: int
    model_dir: Path
    base_name: str
    base_sha256: str
    facts: tuple[Fact, ...]
    replay: tuple[Fact, ...] = ()
    paraphrases: ParaphrasePolicy
    reversed_questions: bool = False
    epochs: int = Field(ge=1)
    batch_preset: BatchPreset = "auto"
    known: Path | None = None
    reasoning: Path | None = None
    min_traces: int = Field(default=0, ge=0)
    lineage: tuple[Path, ...] = ()
    start: tuple[Path, ...] = ()
    stacked: bool = False
    lineage_sha256: tuple[str, ...] = ()
    probe: Path | None = None
    protection: ProtectionSettings
    max_lora_rank: int
    adapters: Path
    served: Path
    records: Path | None = None


class TrainDone(Record):
    """The published adapter, the published revision, and what the trainer measured."""

    adapter: Adapter
    served: Served
    rank: int
    report: dict[str, Any]
    seconds: dict[str, float]
