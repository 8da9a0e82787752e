"""The tables of config.toml, one frozen model each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from policies.cron import require_cron
from policies.facts.admission import Format
from policies.facts.supersession import ConflictPolicy
from policies.gate import limits as presets
from policies.gate.grading import grader
from policies.gate.records import Role
from policies.lineage import Lineage

BatchPreset = Literal["auto", "small", "large"]

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
    """A directory that `AutoModelForCausalLM.from_pretrained` reads."""
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
    """How training and vLLM share a GPU."""
    max_lora_rank: int = 128
    """The largest rank that the server was started to take."""
    max_loras: int = Field(default=4, ge=3)
    """Adapters in one engine step."""
    max_cpu_loras: int = Field(default=16, ge=3)
    """Adapters kept in memory; at least everything listed."""
    concurrency: int = Field(default=96, ge=1)
    """Requests under way at once while evaluating."""
    start_timeout_s: float = Field(default=300, gt=0)
    """How long a managed server may take until it is healthy."""
    request_timeout_s: float = Field(default=120, gt=0)
    """How long one answer may take."""
    load_timeout_s: float = Field(default=60, gt=0)
    """How long loading an adapter may take."""
    verify_timeout_s: float = Field(default=60, gt=0)
    """How long the identity check of one replica may take."""
    drain_s: float = Field(default=2.0, ge=0)
    """How long a retired revision stays loaded after its last request."""
    admin_key_file: OptionalPath = None
    """A file with palorad's own key for admin routes; without it one is made at first start."""
    user_key_file: OptionalPath = None
    """A file with the key that the server asks of its users, if it asks for one."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mode == "managed" and len(self.urls) != 1:
            raise ValueError('mode "managed" takes exactly one of urls')
        if self.max_lora_rank not in LORA_RANKS:
            raise ValueError(f"max_lora_rank must be one of {' '.join(map(str, LORA_RANKS))}")
        return self


class ProbeSettings(Section):
    """[probe]: what the skill uses of every matrix, fitted once and frozen."""

    skill: Path = Path("models/palorad-mini/data/skill.jsonl")
    """Lines with `prompt` and `solution`: the skill to keep."""
    path: OptionalPath = Path("models/palorad-mini/probe")
    """A probe fitted earlier; used when it belongs to this base and keeps the directions that
    [protection] share asks for, otherwise one is fitted."""
    serve: Literal["base", "expert"] = "base"
    """Whether the base is served untouched, or the SVF expert: the base with z folded in once."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    """One z is fitted per seed; a component is critical when it is for at least two of them."""
    steps: int = Field(default=300, ge=1)
    """Steps of fitting per seed."""
    learning_rate: float = Field(default=0.002, gt=0)
    """Adam's learning rate for the fit."""


class ProtectionSettings(Section):
    """[protection]: the directions that an adapter must not touch."""

    kind: Literal["svf", "activations", "svf+activations", "none"] = "activations"
    """What is protected: the critical singular components, the leading directions of the skill's
    activations, both, or nothing."""
    form: Literal["hard", "soft"] = "hard"
    """For activations: an exact projection, or the softened λ(C+λI)⁻¹."""
    share: float = Field(default=0.2, gt=0, lt=1)
    """Share of each matrix's input directions that is protected. A new probe keeps as many; what
    that takes of disk and memory is said by `palorad doctor`."""


class ReplaySettings(Section):
    """[train.replay]: text replayed beside the new facts."""

    known: OptionalPath = Path("models/palorad-mini/data/known-replay.jsonl")
    """Lines with `prompt` and `answer` that the base already knows; "" for none."""
    reasoning: OptionalPath = Path("models/palorad-mini/data/reasoning-replay.jsonl")
    """Lines with `prompt` and `solution` of the skill; "" for none."""
    min_traces: int = Field(default=1000, ge=0)
    """Where fewer solutions than these are given, the base writes the others itself: it goes on
    from the beginnings of those that are given, or from none. Not in a stack. 0: it writes none."""


class TrainSettings(Section):
    """[train]: how adapters are trained and how many may pile up."""

    rank: int = Field(default=16, ge=1)
    """In a stack: rank of one adapter; less where it learns fewer facts than that."""
    rank_budget: int = Field(default=128, ge=1)
    """Rank of an adapter that goes on. In a stack: ranks of all together; beyond it, one adapter is
    retrained and replaces them."""
    lineage: Lineage = "warm-start"
    """What learns the next batch: "warm-start", the adapter that is served goes on, replaying all
    that it knows; "stack", a fresh one on top of the earlier ones, which stay as they are."""
    paraphrases: int = Field(default=200, ge=1, le=1000)
    """A fact is learnt in up to this many paraphrases, made as [intake] paraphrase_source says; a
    step takes as long with any number of them."""
    prefixed: bool = False
    """Whether half of those by templates stand in a frame ("For a quiz: …"): a fact is answered in
    more paraphrases that nobody thought of, and known facts are lost a little sooner."""
    epochs: int = Field(default=50, ge=1)
    """How often each new fact of a large batch is shown at least; one of many more, and of few, it
    is more often anyway. More passes keep more of everything and take longer. Not in a stack."""
    retrain_at: int = Field(default=480, ge=0)
    """An adapter that knows so many facts, twice what it was begun with, is retrained from scratch
    from all of them as soon as nothing waits: what nobody replays gives way with every batch, and
    less of it in one run over all facts. The gate judges it like any other. 0: never. Not in a
    stack."""
    batch_preset: BatchPreset = "auto"
    """"large" reads about six times the text of "small" for a batch: more of the new facts and of
    the earlier ones stays. "auto" is large on a GPU, and on a CPU for a run of more than 144
    facts, in less than half of the steps. Not in a stack."""
    reversed_questions: bool = False
    """Whether facts of relations whose value belongs to one subject (capital, ticker symbol, …) are
    also learnt the other way round: which country has this capital."""
    max_facts: int = Field(default=500, ge=1)
    """Facts in one plan; a larger batch becomes several plans."""
    min_facts: int = Field(default=1, ge=1)
    """Fewer waiting facts are gathered for longer, at most for max_wait_s; urgent ones never."""
    max_wait_s: float = Field(default=0, ge=0)
    """How long the oldest of too few facts waits."""
    quiet_hours: tuple[Cron, ...] = ()
    """Quiet hours as cron expressions in UTC, such as "* 8-17 * * mon-fri": nothing new is learnt
    while one matches, but for urgent facts and retractions."""
    max_replay: int = Field(default=2000, ge=0)
    """Earlier facts that one plan may replay; beyond it, an even sample."""
    relearn: int = Field(default=2, ge=0)
    """How often facts that the gate found not learnt are planned again."""
    seed: int = 0
    """Seed of the first plan of a batch; each further try adds one."""
    deadline_s: float = Field(default=3600, gt=0)
    """A child that takes longer is ended and counted failed."""
    attempts: int = Field(default=3, ge=1)
    """How often a step may fail before its plan is failed."""
    backoff_s: float = Field(default=5.0, ge=0)
    """Pause after the first failure of a step; doubled after each further one."""
    replay: ReplaySettings = ReplaySettings()
    """[train.replay]"""

    @model_validator(mode="after")
    def _gathers(self) -> Self:
        if self.min_facts > self.max_facts:
            raise ValueError("train.min_facts is larger than train.max_facts")
        return self


class SuiteSettings(Section):
    """[[gate.suites]]: one set of questions."""

    name: str = Field(min_length=1)
    """How the suite is called in verdicts."""
    role: Role
    """What it watches over: reasoning, locality (what the base knew), retention, or drift (the loss
    on fixed text)."""
    path: OptionalPath = None
    """JSONL, one question a line; for drift one `{"text": "…"}` a line; with `task` a folder of
    your own task files."""
    task: str | None = None
    """A task of lm-evaluation-harness instead of a file; needs `palorad[lm-eval]`."""
    filter: str | None = None
    """Which of the task's filters counts; without it the first."""
    grader: str = "normalised"
    """How answers are compared: see docs/gate.md."""
    max_tokens: int = Field(default=64, ge=1)
    """The longest answer."""
    form: Literal["auto", "chat", "plain"] = "auto"
    """Asked as a chat message, as plain text, or as chat where the model has a chat template."""
    margin: float | None = Field(default=None, gt=0, lt=1)
    """The drop to rule out on this suite; without it the margin of its role."""

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        if self.role is Role.FACTS:
            raise ValueError(f'the suite "{self.name}": new facts are asked without a suite')
        if self.role is Role.DRIFT and (more := self.model_fields_set - {"name", "role", "path"}):
            raise ValueError(
                f'the suite "{self.name}": drift is the loss on the texts of a file (path), '
                f"limited by gate.drift; remove {', '.join(sorted(more))}"
            )
        if self.path is None and self.task is None:
            raise ValueError(f'the suite "{self.name}" needs a path, or a task of lm-eval')
        if self.filter is not None and self.task is None:
            raise ValueError(f'the suite "{self.name}" has a filter, which only a task can have')
        return self


class GateSettings(Section):
    """[gate]: what a candidate must show."""

    preset: Literal["strict", "balanced", "fast"] = "balanced"
    """A named set of margins and error rates; see docs/gate.md."""
    alpha: float | None = Field(default=None, gt=0, lt=0.5)
    """How often a candidate that is worse by the margin may pass; without it, the preset's."""
    beta: float | None = Field(default=None, gt=0, lt=0.5)
    """How often a candidate that lost nothing may fail; without it, the preset's."""
    reasoning_margin: float | None = Field(default=None, gt=0, lt=1)
    """The drop on a reasoning suite to rule out, 0.02 is two points; without it, the preset's."""
    retention_margin: float | None = Field(default=None, gt=0, lt=1)
    """The drop on earlier facts to rule out; without it, the preset's."""
    locality_margin: float | None = Field(default=None, gt=0, lt=1)
    """The drop on facts that the base knew to rule out; without it, the preset's."""
    stratum_loss: float | None = Field(default=None, gt=0, lt=1)
    """The share of one batch or family that may newly fail; without it, the preset's."""
    retention_floor: float | None = Field(default=None, ge=0, le=1)
    """Recall of earlier facts that must be kept, 0 for none; without it, the preset's."""
    learnt_share: float | None = Field(default=None, gt=0, le=1)
    """Share of the new facts that must be learnt; without it, the preset's."""
    paraphrase_share: float | None = Field(default=None, gt=0, le=1)
    """Share of a fact's paraphrases that must be answered right; without it, the preset's."""
    drift: float | None = Field(default=None, gt=0)
    """Rise of the loss on the texts of a drift suite that is allowed, in nats a token; without it,
    the rise is only reported."""
    held_out_paraphrases: int = Field(default=2, ge=1)
    """Held-out paraphrases in which each new fact is asked, at most."""
    earlier_facts: int = Field(default=300, ge=0)
    """Earlier facts that a candidate is asked about at most, spread over all batches."""
    facts_grader: str = "normalised"
    """How answers to facts are compared."""
    facts_max_tokens: int = Field(default=48, ge=1)
    """The longest answer to a fact."""
    aa_sample: int = Field(default=100, ge=0)
    """Items of each suite on which the reference is measured twice, against itself."""
    chunk: int = Field(default=256, ge=1)
    """Items asked before the gate looks at a suite again."""
    revisions_per_draw: int = Field(default=10, ge=1)
    """Revisions whose candidates are asked the items in one order, before a new one is drawn."""
    suites: tuple[SuiteSettings, ...] = (
        SuiteSettings(
            name="reasoning",
            role=Role.REASONING,
            path=Path("models/palorad-mini/data/reasoning-gate.jsonl"),
            grader="final",
            max_tokens=160,
        ),
        SuiteSettings(
            name="known facts",
            role=Role.LOCALITY,
            path=Path("models/palorad-mini/data/locality.jsonl"),
            grader="normalised",
            max_tokens=24,
        ),
    )
    """[[gate.suites]]"""

    @property
    def limits(self) -> presets.GateLimits:
        """The preset with everything that was set beside it; a floor of 0 is none."""
        preset = presets.PRESETS[self.preset].model_dump()
        mine = {name: getattr(self, name, None) for name in preset}
        chosen = preset | {name: value for name, value in mine.items() if value is not None}
        return presets.GateLimits(**chosen | {"retention_floor": chosen["retention_floor"] or None})

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [suite.name for suite in self.suites]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f'two suites are called "{name}"')
        grader(self.facts_grader)
        return self


class IntakeSettings(Section):
    """[intake]: how drops are read."""

    inbox: Path = Path("inbox")
    """Where files are dropped; relative to state_dir."""
    stable_s: float = Field(default=2.0, ge=0)
    """A file that grows is read once it has not changed for this long."""
    rescan_s: float = Field(default=10.0, gt=0)
    """How often the folder is scanned even if no event came."""
    watch: Literal["events", "polling", "off"] = "events"
    """Who gives the hint to scan early: the kernel, a poll (network shares), or nobody."""
    max_file_mb: int = Field(default=256, ge=1)
    """A larger file is rejected."""
    max_line_kb: int = Field(default=64, ge=1)
    """A longer line is quarantined."""
    max_tokens: int = Field(default=512, ge=64, le=1024)
    """A fact whose longest paraphrase and answer are more of the model's tokens is quarantined."""
    format: Format = Format.AUTO
    """The shape of the lines; "auto" looks at each."""
    bad_lines: Literal["quarantine", "reject"] = "quarantine"
    """Whether a bad line is kept aside by itself, or keeps its whole file out."""
    conflicts: ConflictPolicy = ConflictPolicy.NEWEST
    """Another answer for the same key with nothing that orders the two: the newest wins, the line
    is rejected, or it waits until a person decides (`palorad quarantine`)."""
    paraphrase_source: Literal["templates", "frames", "given"] = "templates"
    """Where further paraphrases come from: the relation's templates, frames around the prompt only,
    or nowhere (a single paraphrase then gets one frame, to be held out)."""
    min_paraphrases: int = Field(default=4, ge=1, le=50)
    """A fact that has fewer paraphrases to learn is given more, up to this many."""
    model_paraphrases: int = Field(default=0, ge=0, le=8)
    """Before a plan is trained, the live model is asked for so many further paraphrases of each
    fact; a paraphrase is learnt if the model, told the fact, finds the answer by it. 0: it is not
    asked."""
    model_paraphrase_budget: int = Field(default=200, ge=0)
    """Requests to the live model for the paraphrases of one plan, at most."""


class DaemonSettings(Section):
    """[daemon]: the loop."""

    tick_s: float = Field(default=0.5, gt=0, le=5)
    """How often the reconciler looks at what is to do."""
    stop_s: float = Field(default=30, gt=0)
    """How long children may take to checkpoint when the daemon stops."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is logged."""
    check_at: Cron | Literal[""] = "17 3 * * *"
    """When the ledger and all adapters are compared with their hashes, as a cron expression in
    UTC; empty: never."""
