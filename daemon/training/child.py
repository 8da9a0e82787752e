"""The training steps of a leased child: have a probe; train, compose, check and publish."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from adapters import checks, files, models, store
from adapters.compose import compose
from adapters.errors import BrokenAdapter, ProbeMismatch
from adapters.generate import Generator
from adapters.plans import TrainPlan, TrainProgress, TrainReport
from adapters.probe import Probe, Protection
from adapters.probe_fit import FitProgress, fit_probe, fold_expert
from adapters.probe_fit import ProbeConfig as FitSettings
from adapters.processes import Processes
from adapters.trainer import train_adapter
from daemon.base import faults
from daemon.children.jobs import Progress
from daemon.children.request import read
from daemon.children.worker import StepContext, Stopped
from daemon.ledger.records import Adapter, Served
from daemon.training import together
from daemon.training.messages import ProbeReport, ProbeRequest, TrainDone, TrainRequest
from policies.errors import ConfigError
from policies.facts.reversal import reversed_facts
from policies.facts.updates import Updates
from policies.records import Example, Fact

CHECKPOINT = "checkpoint"
IDENTITY_PROMPTS = 8
IDENTITY_TOKENS = 16


def probe(desk: StepContext) -> ProbeReport:
    """Use the probe that belongs to this base, or fit one; fold the expert where it is served."""
    request = ProbeRequest.model_validate_json(desk.request)
    begun = time.monotonic()
    base = models.base_hash(request.model_dir)
    reads_svf = "svf" in request.protection.kind or request.settings.serve == "expert"
    fit = FitSettings(
        seeds=request.settings.seeds if reads_svf else (),
        steps=request.settings.steps,
        learning_rate=request.settings.learning_rate,
        share=request.protection.share,
        keep_bases="svf" in request.protection.kind,
    )
    skill = tuple(read_examples(request.settings.skill, "solution"))
    named, own = request.settings.path, request.probes / base[:12]
    at = _ready(named, base, fit) or _ready(own, base, fit)
    fitted = at is None
    if at is None:
        at = own
        fit_probe(request.model_dir, skill, at, fit, _relay(desk))
    faults.point("probe:published")
    served = request.model_dir
    if request.settings.serve == "expert":
        served = fold_expert(
            request.model_dir, Probe.load(at, base), request.experts / base[:12], skill, fit
        )
        at = served / "probe"
    return ProbeReport(
        probe=at,
        served_dir=served,
        served_sha256=models.base_hash(served),
        base_sha256=base,
        fitted=fitted,
        seconds=time.monotonic() - begun,
    )


def train(desk: StepContext) -> TrainDone:
    """Train the adapter, publish it, and publish what the lineage with it composes to."""
    request = TrainRequest.model_validate_json(desk.request)
    staging = store.staging(request.adapters, f"plan-{desk.workdir.name}")
    begun = time.monotonic()
    report = _trained(desk, request, staging)
    trained = time.monotonic()
    faults.point("train:trained")
    adapter_dir = store.publish(
        staging,
        request.adapters,
        {
            "base_hash": request.base_sha256,
            "rank": request.rank,
            "seed": request.seed,
            "kind": str(request.kind),
            "parents": list(request.lineage_sha256),
            "facts": [fact.id for fact in request.facts],
            "replayed": [fact.id for fact in request.replay],
            "report": report.model_dump(mode="json"),
        },
    )
    faults.point("train:adapter-published")
    sha = store.read_manifest(adapter_dir)["sha256"]
    desk.progress(Progress(stage="compose"))
    served, rank = _serve(request, desk.workdir.name, adapter_dir, sha)
    faults.point("train:revision-published")
    return TrainDone(
        adapter=Adapter(sha256=sha, rank=request.rank),
        served=served,
        rank=rank,
        report=report.model_dump(mode="json"),
        seconds={"train": trained - begun, "compose": time.monotonic() - trained},
    )


def _trained(desk: StepContext, request: TrainRequest, out: Path) -> TrainReport:
    """Train the adapter here, or in processes that share each step."""
    if request.processes > 1:
        return together.train(desk, request.processes, out)
    return train_adapter(
        train_plan(request),
        out=out,
        work=desk.workdir / CHECKPOINT,
        progress=lambda p: desk.progress(_training(p)),
        records=request.records,
        stopping=lambda: desk.stopping,
    )


def train_share(workdir: Path, out: Path) -> None:
    """One of several processes that train what the leased child of `workdir` is asked for.

    The first alone writes progress, checkpoints, the adapter and what was measured.
    """
    request = TrainRequest.model_validate_json(read(workdir))
    processes = Processes.joined()

    def relay(progress: TrainProgress) -> None:
        if processes.first:
            lines.write(_training(progress).model_dump_json() + "\n")
        if progress.stopping:
            raise Stopped

    with (workdir / "progress.jsonl").open("a", encoding="utf-8", buffering=1) as lines:
        report = train_adapter(
            train_plan(request),
            out=out,
            work=workdir / CHECKPOINT,
            progress=relay,
            records=request.records,
            processes=processes,
            stopping=(workdir / together.STOP).exists,
        )
    if processes.first:
        (workdir / together.TRAINED).write_text(report.model_dump_json())
    processes.leave()


def read_examples(path: Path | None, completion: str) -> Iterator[Example]:
    """Examples from JSONL lines with `prompt` and `answer` or `solution`, one per paraphrase.

    `completion` names the key that is completed: "answer" for known facts, "solution" for
    reasoning. Raises `ConfigError` with the line where there is something else.
    """
    if path is None:
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = json.loads(line)
            prompts = [row["prompt"], *row.get("paraphrases", ())]
            text = row[completion]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}, line {number}: expected an object with prompt and {completion}: {error!r}"
            ) from error
        for prompt in prompts:
            if completion == "answer":
                yield Example(prompt=prompt, completion=text, kind="known")
            else:
                yield Example(prompt=prompt, completion=text, kind="reasoning")


def _ready(directory: Path | None, base: str, fit: FitSettings) -> Path | None:
    """The directory, if it holds a probe of this base with all that this fit would give."""
    if directory is None or not directory.is_dir():
        return None
    try:
        Probe.load(directory, base).require(fit.share, svf=bool(fit.seeds))
    except (ProbeMismatch, ConfigError):
        return None
    return directory


def train_plan(request: TrainRequest) -> TrainPlan:
    """Everything that the training depends on; known text that a fact contradicts is left out."""
    config = request.config.resolved(models.pick_device().type, len(request.facts))
    reversed_now: tuple[Fact, ...] = ()
    reversed_replay: tuple[Fact, ...] = ()

    def paraphrased(facts: tuple[Fact, ...]) -> tuple[Fact, ...]:
        return tuple(map(request.paraphrases.for_training, facts))

    updates = Updates((*request.facts, *request.replay))
    if config.reversed_questions:
        reversed_now = reversed_facts(request.facts, request.replay)
        reversed_replay = reversed_facts(request.replay, request.facts)
    return TrainPlan(
        kind=request.kind,
        rank=request.rank,
        seed=request.seed,
        model_dir=request.model_dir,
        base_hash=request.base_sha256,
        base_name=request.base_name,
        facts=paraphrased(request.facts),
        reversed_facts=reversed_now,
        replay=(*paraphrased(request.replay), *reversed_replay),
        known=updates.unchanged(read_examples(request.known, "answer")),
        reasoning=tuple(read_examples(request.reasoning, "solution")),
        lineage=request.lineage,
        start=request.start,
        probe_dir=request.probe,
        protection=Protection(**request.protection.model_dump()),
        config=config,
    )


def _serve(request: TrainRequest, staged: str, adapter: Path, sha: str) -> tuple[Served, int]:
    """Compose, check as a server would be given it, note how it answers, publish."""
    staging = store.staging(request.served, staged)
    rank = compose([*request.lineage, adapter], staging, request.base_name)
    checks.require_sound(
        staging, request.model_dir, max_rank=request.max_lora_rank, base_name=request.base_name
    )
    generator = Generator(request.model_dir, max_rank=request.max_lora_rank)
    generator.load("candidate", staging)
    prompts = [fact.prompt for fact in request.facts[:IDENTITY_PROMPTS]]
    identity = checks.identity_probe(generator, "candidate", prompts, IDENTITY_TOKENS)
    if not identity["differs"]:
        raise BrokenAdapter(str(adapter), ("answers exactly as the base does; nothing was learnt",))
    files.write_json(staging / "identity.json", identity)
    published = store.publish(
        staging,
        request.served,
        {"base_hash": request.base_sha256, "lineage": [*request.lineage_sha256, sha]},
        lambda content: f"palora-{request.number:06}-{content[:8]}",
    )
    content = store.read_manifest(published)["sha256"]
    return Served(name=published.name, sha256=content), rank


def _training(progress: TrainProgress) -> Progress:
    return Progress(
        stage="train",
        done=progress.step,
        total=progress.steps,
        loss=progress.loss,
        seconds_left=progress.seconds_left,
    )


def _relay(desk: StepContext) -> Callable[[FitProgress], None]:
    def relay(progress: FitProgress) -> None:
        desk.progress(
            Progress(
                stage=f"probe: {progress.stage}",
                done=progress.done,
                total=progress.total,
                loss=progress.loss,
                seconds_left=progress.seconds_left,
            )
        )

    return relay
