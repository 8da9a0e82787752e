"""What the training children are asked for and what they report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapters.config import TrainConfig
from daemon.config.sections import ProbeSettings, ProtectionSettings
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
    """Train one adapter by `config` and compose what would be served.

    `number` is that of the revision it would become. `lineage` are the directories of the adapters
    that it stands on, none where it is trained from scratch, with their hashes in `lineage_sha256`;
    `start` those that it replaces by a warm start. `facts` are learnt beside `replay`, each in the
    paraphrases that `paraphrases` gives it; `known` and `reasoning` are files of text to replay. As
    many `processes` share the texts of each step.
    """

    kind: PlanKind
    number: int
    rank: int
    seed: int
    model_dir: Path
    base_name: str
    base_sha256: str
    facts: tuple[Fact, ...] = ()
    replay: tuple[Fact, ...] = ()
    config: TrainConfig
    processes: int = 1
    paraphrases: ParaphrasePolicy
    known: Path | None = None
    reasoning: Path | None = None
    lineage: tuple[Path, ...] = ()
    start: tuple[Path, ...] = ()
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
