"""Fit a probe once per base: SVF over several seeds, and the moments of every matrix's inputs."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapters import models, moment_files, store, svf
from adapters.errors import ProbeMismatch, UnusableExamples
from adapters.examples import Encoded, PaddedBatch, buckets, collate, encode_example, length
from adapters.losses import mean_loss
from adapters.probe import BASES, CARD, MOMENTS, TENSORS, Probe
from adapters.probe_card import ProbeConfig, SVFFit, describe
from policies.records import Example

__all__ = ["FitProgress", "ProbeConfig", "fit_probe", "fold_expert"]

KEEP_BASES_FROM = 1024
HELD_OUT_EVERY = 10


@dataclass(frozen=True, slots=True)
class FitProgress:
    """How far a fit has come: `stage` is "decompose", "moments" or "seed N"."""

    stage: str
    done: int
    total: int
    seconds_left: float | None
    loss: float | None = None


@dataclass
class _Clock:
    """Turns counted work into progress with the time left."""

    report: Callable[[FitProgress], None]
    now: Callable[[], float]
    started: dict[str, tuple[int, float]] = field(default_factory=dict)

    def tick(
        self, stage: str, done: int, total: int, loss: float | None = None, stages_left: int = 0
    ) -> None:
        first, since = self.started.setdefault(stage, (done, self.now()))
        left = None
        if done > first:
            each = (self.now() - since) / (done - first)
            left = each * (total - done + stages_left * total)
        self.report(FitProgress(stage, done, total, left, loss))


def fit_probe(
    model_dir: Path,
    skill: Sequence[Example],
    out: Path,
    settings: ProbeConfig,
    progress: Callable[[FitProgress], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Probe:
    """Fit a probe of the base at `model_dir` and publish it at `out`; a fitted one is reused.

    Decompositions, moments and finished seeds are kept beside `out` until the end: a fit that was
    interrupted continues from them. Every tenth example is held out to measure the skill's loss.
    Without seeds there are only moments. Raises `ConfigError` where a fitted one keeps too few
    directions, or no singular values where they are asked for.
    """
    base = models.base_hash(model_dir)
    if out.exists():
        found = Probe.load(out, base)
        found.require(settings.share, svf=bool(settings.seeds))
        return found
    tokenizer = models.load_tokenizer(model_dir)
    pool = [encode_example(tokenizer, example, limit=settings.max_length) for example in skill]
    if len(pool) < 2:
        raise UnusableExamples(
            f"a probe needs at least 2 examples of the skill, {len(pool)} given: see [probe] skill"
        )
    identity = json.dumps([base, settings.model_dump(mode="json"), [e.model_dump() for e in skill]])
    work = out.parent / f".fit-{out.name}-{store.text_hash(identity)[:8]}"
    work.mkdir(parents=True, exist_ok=True)
    device = models.pick_device()
    model = models.load_base(model_dir, device)
    matrices = models.matrices(model)
    timer = _Clock(progress, clock)
    pad = int(tokenizer.pad_token_id)
    if settings.seeds:
        _decompose(matrices, work / BASES, settings.keep_bases, timer)
    batches = _batches(pool, settings, pad, device)
    moment_files.gather(
        model, matrices, batches, work / MOMENTS, settings.share, partial(timer.tick, "moments")
    )
    fitted = _svf(model, matrices, pool, settings, pad, work, timer) if settings.seeds else None
    moment_of = moment_files.reader(work / MOMENTS, matrices)
    card = describe(model, matrices, fitted, moment_of, settings)
    card |= {"base_hash": base, "base": model_dir.name}
    card["skill"] |= {"examples": len(skill)}
    return _publish(work, out, fitted.tensors if fitted else {}, card, settings.keep_bases)


def fold_expert(
    model_dir: Path,
    probe: Probe,
    out: Path,
    skill: Sequence[Example],
    settings: ProbeConfig,
    seed: int = 0,
) -> Path:
    """Write the SVF expert (the base with z folded in), its own probe at `out`/probe; return `out`.

    The expert has the base's singular vectors and the values σ ⊙ (1 + δ) of the `seed`-th fit.
    Its probe carries the same δ, and moments gathered on the expert itself. Raises `ConfigError`
    where an expert is there whose probe keeps too few directions.
    """
    if out.exists():
        Probe.load(out / "probe", models.base_hash(out)).require(settings.share, svf=True)
        return out
    device = models.pick_device()
    tokenizer = models.load_tokenizer(model_dir)
    model = models.load_base(model_dir, device, torch.float32)
    matrices = models.matrices(model)
    for name, matrix in matrices.items():
        vectors = probe.narrow_vectors(name, matrix.weight).to(device)
        delta = probe.deltas(name)[seed].to(device)
        matrix.weight.data.copy_(svf.fold(matrix.weight, vectors, delta))
    staging = store.staging(out.parent, out.name)
    model.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    pool = [encode_example(tokenizer, e, limit=settings.max_length) for e in skill]
    gathered = staging / MOMENTS
    batches = _batches(pool, settings, int(tokenizer.pad_token_id), device)
    moment_files.gather(model, matrices, batches, gathered, settings.share)
    tensors = {}
    for name in matrices:
        scaled = probe.sigma(name).double() * (1 + probe.deltas(name)[seed].double())
        tensors[f"{name}.sigma"] = scaled.abs().float()
        tensors[f"{name}.delta"] = probe.deltas(name)
    card = {
        **probe.card,
        "settings": {**probe.card["settings"], "share": settings.share},
        "skill": dict(probe.card["skill"]),
        "base_hash": models.base_hash(staging),
        "expert_of": probe.card["base_hash"],
        "expert_seed": probe.card["settings"]["seeds"][seed],
    }
    _write(staging / "probe", tensors, card, gathered)
    store.remove(gathered)
    return store.publish(staging, out.parent, {"expert_of": card["expert_of"]}, lambda _: out.name)


def _decompose(matrices: Mapping[str, nn.Linear], folder: Path, exact: bool, timer: _Clock) -> None:
    """Write σ of every matrix and the narrow side's vectors to `folder`, unless they are there.

    The vectors are in fp32 where `exact` says so, else in the precision of the weights, in which
    the fit applies them.
    """
    folder.mkdir(exist_ok=True)
    for done, (name, matrix) in enumerate(matrices.items()):
        timer.tick("decompose", done, len(matrices))
        path = folder / f"{name}.safetensors"
        if not path.is_file():
            sigma, vectors = svf.decompose(matrix.weight.detach())
            kind = torch.float32 if exact else matrix.weight.dtype
            moment_files.save(
                path, {"sigma": sigma.cpu(), "vectors": vectors.to(kind).cpu().contiguous()}
            )
    timer.tick("decompose", len(matrices), len(matrices))


def _svf(
    model: Any,
    matrices: Mapping[str, nn.Linear],
    pool: Sequence[Sequence[Encoded]],
    settings: ProbeConfig,
    pad: int,
    work: Path,
    timer: _Clock,
) -> SVFFit:
    """Train the factors with every seed on nine tenths of the pool, and measure on the last."""
    held_out = _batches(pool[::HELD_OUT_EVERY], settings, pad, torch.device(model.device))
    before = mean_loss(model, held_out)
    training = [p for i, p in enumerate(pool) if i % HELD_OUT_EVERY]
    deltas, after = _seeds(model, matrices, training, settings, pad, held_out, work, timer)
    tensors = {}
    for name in matrices:
        with safe_open(work / BASES / f"{name}.safetensors", framework="pt") as kept:
            tensors[f"{name}.sigma"] = kept.get_tensor("sigma").float()
        tensors[f"{name}.delta"] = torch.stack([d[name] for d in deltas]).float()
    return SVFFit(tensors, before, after)


def _seeds(
    model: Any,
    matrices: Mapping[str, nn.Linear],
    pool: Sequence[Sequence[Encoded]],
    settings: ProbeConfig,
    pad: int,
    held_out: Sequence[PaddedBatch],
    work: Path,
    timer: _Clock,
) -> tuple[list[dict[str, Tensor]], list[float]]:
    deltas, after = [], []
    for index, seed in enumerate(settings.seeds):
        path = work / f"seed-{seed}.safetensors"
        if not path.is_file():
            left = len(settings.seeds) - index - 1

            def tick(step: int, loss: float, seed: int = seed, left: int = left) -> None:
                timer.tick(f"seed {seed}", step, settings.steps, loss, left)

            found, loss = svf.train(
                model,
                matrices,
                lambda name: load_file(work / BASES / f"{name}.safetensors")["vectors"],
                pool,
                pad_id=pad,
                seed=seed,
                steps=settings.steps,
                learning_rate=settings.learning_rate,
                decay=settings.decay,
                batch=settings.batch,
                max_tokens=settings.max_tokens,
                on_step=tick,
                measure=lambda: mean_loss(model, held_out),
            )
            found["loss"] = torch.tensor(loss, dtype=torch.float64)
            moment_files.save(path, found)
        kept = load_file(path)
        after.append(float(kept.pop("loss")))
        deltas.append(kept)
    return deltas, after


def _batches(
    pool: Sequence[Sequence[Encoded]], settings: ProbeConfig, pad: int, device: torch.device
) -> list[PaddedBatch]:
    flat = [one for variants in pool for one in variants]
    return [collate(group, pad).to(device) for group in buckets(flat, settings.max_tokens, length)]


def _write(
    directory: Path, tensors: Mapping[str, Tensor], card: dict[str, Any], gathered: Path
) -> None:
    """Write a probe from its tensors, its card and the moments in `gathered`."""
    directory.mkdir(exist_ok=True)
    small, card["skill"]["tokens"] = moment_files.settle(gathered, directory / MOMENTS)
    every = {**tensors, **small}
    finite = all(bool(torch.isfinite(t).all()) for t in every.values())
    if not finite or any(not math.isfinite(x) for x in card["skill"].get("loss_after", ())):
        raise ProbeMismatch(
            "the fitted probe holds NaN or infinite values; lower its learning rate"
        )
    save_file(every, directory / TENSORS)
    (directory / CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n")


def _publish(
    work: Path, out: Path, tensors: Mapping[str, Tensor], card: dict[str, Any], keep_bases: bool
) -> Probe:
    staging = store.staging(out.parent, out.name)
    _write(staging, tensors, card, work / MOMENTS)
    big = [n for n, entry in card["matrices"].items() if entry["narrow"] >= KEEP_BASES_FROM]
    if big and keep_bases:
        (staging / BASES).mkdir()
        for name in big:
            (work / BASES / f"{name}.safetensors").rename(staging / BASES / f"{name}.safetensors")
    store.publish(staging, out.parent, {"base_hash": card["base_hash"]}, lambda _: out.name)
    shutil.rmtree(work, ignore_errors=True)
    return Probe.load(out, card["base_hash"])
