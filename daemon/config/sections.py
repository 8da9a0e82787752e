"""The tables of config.toml, one frozen model each; [train] and [gate] have files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from policies.cron import require_cron
from policies.facts.admission import Format
from policies.facts.paraphrases import ParaphraseSource
from policies.facts.supersession import ConflictPolicy

LORA_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def _without_slash(value: object) -> object:
    return value.rstrip("/") if isinstance(value, str) else value


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


Url = Annotated[str, BeforeValidator(_without_slash), Field(pattern=r"^https?://[^\s/]+(/\S*)?$")]
Cron = Annotated[str, AfterValidator(require_cron)]
OptionalPath = Annotated[Path | None, BeforeValidator(_none_if_empty)]


class Section(BaseModel):
    """A frozen table of config.toml; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelSettings(Section):
    """[model]: the base model."""

    path: Path = Path("models/palorad-mini")
    """The base model: a directory that `AutoModelForCausalLM.from_pretrained` reads."""
    name: str = Field(default="base", pattern=r"^[\w.:/-]+$")
    """The name under which the server serves it without adapters."""
    alias: str = Field(default="palora-live", pattern=r"^[\w.:/-]+$")
    """The stable name that clients ask for."""


class ServerSettings(Section):
    """[server]: who answers, and how palorad talks to it."""

    kind: Literal["embedded", "vllm"] = "embedded"
    """palorad's own small server, or vLLM."""
    mode: Literal["managed", "attach"] = "managed"
    """Whether palorad starts and restarts the server, or the operator does."""
    urls: tuple[Url, ...] = Field(default=("http://127.0.0.1:8421",), min_length=1)
    """One base URL per replica; "managed" takes exactly one."""
    executable: str = "vllm"
    """Managed vLLM: the `vllm` of its own environment."""
    extra_args: tuple[str, ...] = ()
    """Managed vLLM: further arguments of `vllm serve`."""
    gpu_sharing: Literal["separate", "coresident", "sleep"] = "separate"
    """What happens to vLLM while an adapter is trained: nothing, training waits for free memory, or
    vLLM sleeps ([one GPU](serving.md#one-gpu-for-serving-and-training))."""
    max_lora_rank: int = 128
    """The largest LoRA rank that the server is started with; one of 1 8 16 32 64 128 256 320
    512."""
    max_loras: int = Field(default=4, ge=3)
    """Adapters that one step of the engine can use."""
    max_cpu_loras: int = Field(default=16, ge=3)
    """Adapters that the server keeps in memory; at least as many as are loaded at a time."""
    concurrency: int = Field(default=96, ge=1)
    """Requests that an evaluation has under way at a time."""
    start_timeout_s: float = Field(default=300, gt=0)
    """How long a managed server may take to become healthy."""
    request_timeout_s: float = Field(default=120, gt=0)
    """How long one answer may take."""
    load_timeout_s: float = Field(default=60, gt=0)
    """How long loading an adapter may take."""
    verify_timeout_s: float = Field(default=60, gt=0)
    """How long the identity check of one replica may take."""
    replicas_at_once: int = Field(default=32, ge=1)
    """Replicas that are brought to a revision at a time. One that takes longer than half a second
    lets the next begin."""
    drain_s: float = Field(default=2.0, ge=0)
    """How long a revision that is neither live nor the one before nor a candidate stays loaded
    after its last request."""
    admin_key_file: OptionalPath = None
    """A file with palorad's own key for admin routes. Without it `admin.key` is made in state_dir
    at the first start."""
    user_key_file: OptionalPath = None
    """A file with the key that the server asks of its users, if it asks for one."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mode == "managed" and len(self.urls) != 1:
            raise ValueError('mode "managed" takes exactly one of urls')
        if self.gpu_sharing == "sleep" and self.kind != "vllm":
            raise ValueError('gpu_sharing "sleep" needs kind "vllm": no other server can sleep')
        if self.max_lora_rank not in LORA_RANKS:
            raise ValueError(f"max_lora_rank must be one of {' '.join(map(str, LORA_RANKS))}")
        return self


class ProbeSettings(Section):
    """[probe]: what the skill uses of every matrix, fitted once and frozen."""

    skill: Path = Path("models/palorad-mini/data/skill.jsonl")
    """Lines with `prompt` and `solution`: the skill to preserve."""
    path: OptionalPath = Path("models/palorad-mini/probe")
    """A probe fitted earlier. It is used if it was fitted on this base and keeps as many directions
    as protection.share asks for; otherwise a new one is fitted."""
    serve: Literal["base", "expert"] = "base"
    """What is served as the base: the model in model.path, or its SVF expert (that model with the
    factors z that were trained on the skill folded in)."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    """Factors z are trained once per seed; a component is critical if it is for at least two. They
    are fitted where something reads them: protection by svf, or the SVF expert."""
    steps: int = Field(default=300, ge=1)
    """Optimiser steps per seed."""
    learning_rate: float = Field(default=0.002, gt=0)
    """Adam's learning rate for the fit."""


class ProtectionSettings(Section):
    """[protection]: the directions that an adapter must not touch."""

    kind: Literal["svf", "activations", "svf+activations", "none"] = "activations"
    """What is protected: the critical singular components (svf), the leading input directions of
    the skill's activations, both, or nothing. Unset: as train.method says."""
    form: Literal["hard", "soft"] = "hard"
    """For activations: an exact projection, or [one that shrinks
    them](training.md#what-is-protected-and-why)."""
    share: float = Field(default=0.2, gt=0, lt=1)
    """Protected share of each matrix's input directions, for activations. `palorad doctor` says how
    much disk and memory the probe then takes."""


class IntakeSettings(Section):
    """[intake]: how drops are read."""

    inbox: Path = Path("inbox")
    """Where files are dropped; relative to state_dir."""
    stable_s: float = Field(default=2.0, ge=0)
    """A file is read once it has not changed for this long."""
    rescan_s: float = Field(default=10.0, gt=0)
    """How often the folder is scanned, whatever watch says."""
    watch: Literal["events", "polling", "off"] = "events"
    """What triggers an earlier scan: events of the kernel, polling (for network shares), or
    nothing."""
    late_lines_s: float = Field(default=3600, ge=0)
    """How long a file that was read is watched for further lines where the kernel does not tell
    whether its writer has closed it (another user's file without CAP_LEASE; network shares)."""
    max_file_mb: int = Field(default=256, ge=1)
    """A larger file is rejected."""
    max_lines: int = Field(default=1_000_000, ge=1)
    """A file of more lines (or items of a list) is rejected."""
    max_quarantined: int = Field(default=1000, ge=0)
    """Quarantined lines of one file that are kept with reason and text; of further ones the ledger
    keeps number and kind, and the archive the text."""
    max_line_kb: int = Field(default=64, ge=1)
    """A longer line is quarantined."""
    max_tokens: int = Field(default=512, ge=64, le=1024)
    """A fact whose longest paraphrase and answer together take more tokens is quarantined."""
    format: Format = Format.AUTO
    """The format of the lines; "auto" detects it line by line."""
    bad_lines: Literal["quarantine", "reject"] = "quarantine"
    """Whether a bad line is quarantined alone, or rejects its whole file."""
    conflicts: ConflictPolicy = ConflictPolicy.NEWEST
    """What happens to a second answer for the same key when no dates order the two: the later line
    wins, it is quarantined, or it is quarantined until a person decides (`palorad quarantine`)."""
    paraphrase_source: ParaphraseSource = "templates"
    """Where further paraphrases come from: templates of the relation, prefixes to the prompt
    ("frames"), or nowhere (a fact with a single prompt then gets one prefixed prompt, which is held
    out)."""
    min_paraphrases: int = Field(default=4, ge=1, le=50)
    """A fact that comes with fewer paraphrases to train is stored with this many. Training may use
    more: see train.paraphrases."""
    model_paraphrases: int = Field(default=0, ge=0, le=8)
    """How many paraphrases of each fact the live model is asked for before a plan is trained. One
    is kept if the model, told the fact, answers it correctly. 0: none."""
    model_paraphrase_budget: int = Field(default=200, ge=0)
    """Requests to the live model for the paraphrases of one plan, at most."""


class DaemonSettings(Section):
    """[daemon]: the loop."""

    tick_s: float = Field(default=0.5, gt=0, le=5)
    """How often the loop looks for work."""
    stop_s: float = Field(default=30, gt=0)
    """How long children may take to checkpoint when the daemon stops."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level of messages that is logged."""
    check_at: Cron | Literal[""] = "17 3 * * *"
    """When everything stored is verified (`palorad verify`): a cron expression in UTC, or "" for
    never."""
