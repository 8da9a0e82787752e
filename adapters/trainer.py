"""One flat training loop: a LoRA that moves only in the free subspace, with replay."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from adapters import checkpoint, compose, lora, models, projection
from adapters.attach import NEW, Attached, attach, extract
from adapters.errors import TrainingDiverged
from adapters.losses import Aims, Kept, backward
from adapters.muon import Muon
from adapters.plans import (
    REFERENCE_RATE,
    REFERENCE_WIDTH,
    TrainPlan,
    TrainProgress,
    TrainReport,
    TrainSettings,
)
from adapters.precision import reduced
from adapters.probe import Probe
from adapters.progress import State, conclude
from adapters.projection import Protected
from adapters.reference import Reference, record
from adapters.replay import Pools, draw, encode_pools
from adapters.subspace import join, orthonormal
from adapters.synthesis import written

CPU_TOKENS, GPU_TOKENS = 512, 4096


@dataclass(frozen=True, slots=True)
class Hooks:
    """Where a method of the bench differs from the product: each part may be replaced.

    `protect` gives the protected subspaces by matrix name; `config` changes PEFT's configuration;
    `start` may set the factors that training begins with; `relieved` says that they were taken out
    of the base and are to be taken out of the result as well;
    `extra_loss` is added to the loss of each step and must be differentiable; `after_step` may
    change the model after the optimiser moved it.
    """

    protect: Callable[[Any, TrainPlan], Mapping[str, Protected]] | None = None
    config: Mapping[str, Any] | None = None
    start: Callable[[Any], None] | None = None
    relieved: bool = False
    extra_loss: Callable[[Any, int], Tensor] | None = None
    after_step: Callable[[Any, int], None] | None = None


PRODUCT = Hooks()


def train_adapter(
    plan: TrainPlan,
    *,
    out: Path,
    work: Path,
    progress: Callable[[TrainProgress], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    hooks: Hooks = PRODUCT,
    records: Path | None = None,
) -> TrainReport:
    """Train one adapter by `plan` and write it to `out` as a plain PEFT LoRA in fp32.

    What the frozen reference says, and texts that it wrote itself, are kept in `records` for the
    next run.

    Goes on from the newest checkpoint in `work`, and then ends with the same bytes as a run that
    was never cut off (on the same machine and number of threads). Raises `NoFreeSpace` before
    any training, `TrainingDiverged` when the loss is not finite, `BrokenAdapter` when the saved
    tensors leak into the protected space by more than 5e-3.
    """
    started, device = clock(), models.pick_device()
    settings = plan.settings
    tokenizer = models.load_tokenizer(plan.model_dir)
    pools, pad = encode_pools(plan, tokenizer), int(tokenizer.pad_token_id)
    base = models.load_base(plan.model_dir, device)
    pools = _filled(pools, base, tokenizer, plan, records)
    protected = (hooks.protect or protect)(base, plan)
    free = projection.check_free_space(protected, plan.rank)
    attached = attach(base, plan, hooks.config, hooks.start)
    model = attached.model
    projection.install(model, NEW, protected, begun=bool(plan.start))
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = _optimizer(list(parameters.values()), settings, learning_rate(plan, base))
    peak = optimizer.param_groups[0]["lr"]
    steps = steps_needed(settings, len(pools.new), len(pools.old))
    fingerprint = hashlib.sha256(plan.model_dump_json().encode()).hexdigest()
    size = settings.max_tokens or (CPU_TOKENS if device.type == "cpu" else GPU_TOKENS)
    first, state = _resume(parameters, optimizer, checkpoint.latest(work, fingerprint), size)
    reference = None
    if settings.kl_weight:
        reference = _recorded(attached, pools, plan, size, pad, device, records)
        pools = replace(pools, odds=_odds(reference, pools, settings.entropy_weight))
    admissible = None if first else _admissible(model, pools, plan, size, pad, device)
    last_saved, begun = clock(), clock()

    for step in range(first, steps):
        if state.end is not None and step >= state.end:
            break
        optimizer.param_groups[0]["lr"] = peak * _rate(step, steps, settings, state)
        aims = _aims(pools, plan, step, reference)
        loss, rows, state.max_tokens = backward(
            model, aims, state.max_tokens, pad, device, partial(cheaply, model, device)
        )
        if hooks.extra_loss is not None:
            torch.autograd.backward(hooks.extra_loss(model, step))
        norm = torch.nn.utils.clip_grad_norm_(list(parameters.values()), settings.clip)
        _require_finite(loss, float(norm), step, steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if hooks.after_step is not None:
            hooks.after_step(model, step)
        state.note(loss, rows)
        if state.end is None and _learnt(state, plan, step, steps):
            state.stopped, state.end = step + 1, min(step + 1 + settings.cooldown, steps)
        left = (clock() - begun) / (step + 1 - first) * ((state.end or steps) - step - 1)
        progress(
            TrainProgress(step=step + 1, steps=state.end or steps, loss=loss, seconds_left=left)
        )
        if clock() - last_saved >= settings.checkpoint_s and step + 1 < steps:
            _save(work, fingerprint, step + 1, parameters, optimizer, state)
            last_saved = clock()

    projection.fold_into_weights(model, NEW)
    found = extract(model)
    adapter = lora.beyond(attached.initial, found) if hooks.relieved else found
    lora.write(out, adapter, plan.base_name)
    return conclude(plan, out, protected, state, steps, free, admissible, clock() - started)


@contextmanager
def cheaply(model: Any, device: torch.device, tokens: int) -> Iterator[None]:
    """Within it passes of so many `tokens` in all share a projection, their products reduced."""
    with projection.shared(model, NEW, tokens), reduced(device):
        yield


def _filled(pools: Pools, base: Any, tokenizer: Any, plan: TrainPlan, folder: Path | None) -> Pools:
    """With texts by the base itself where fewer solutions are given than are to be replayed."""
    settings = plan.settings
    lacking = settings.min_traces - len(pools.reasoning)
    if lacking <= 0 or not settings.kl_weight_reasoning or not settings.reasoning_per_step:
        return pools
    texts = written(
        base, tokenizer, pools.reasoning, lacking, base_hash=plan.base_hash, folder=folder
    )
    return replace(pools, reasoning=[*pools.reasoning, *texts])


def _aims(pools: Pools, plan: TrainPlan, step: int, reference: Reference | None) -> Aims:
    """Facts by their labels; the rest by the reference's own answers, or by labels too."""
    settings = plan.settings
    drawn = draw(pools, settings, plan.seed, step)
    if reference is None:
        return Aims([*drawn.new, *drawn.old, *drawn.known, *drawn.reasoning])
    share = settings.held(len(pools.new), len(pools.old))
    kept = (
        Kept(drawn.known, share * settings.kl_weight, reference.logits),
        Kept(drawn.reasoning, share * settings.kl_weight_reasoning, reference.logits),
    )
    weighed = [one for one in kept if one.texts]
    return Aims(drawn.new, drawn.old, weighed, settings.temperature)


def _require_finite(loss: float, norm: float, step: int, steps: int) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainingDiverged(
            f"step {step + 1} of {steps}: loss {loss}, gradient norm {norm}; "
            "lower [train] learning_rate"
        )


def protect(model: Any, plan: TrainPlan) -> dict[str, Protected]:
    """The product's protected subspaces: the probe's, and earlier adapters' inputs if asked."""
    if plan.probe_dir is None or plan.protection.kind == "none":
        return {}
    probe = Probe.load(plan.probe_dir, plan.base_hash)
    found = {}
    for name, matrix in models.matrices(model, plan.settings.targets).items():
        if name in probe.matrices:
            found[name] = probe.protected(name, matrix.weight, plan.protection)
    if plan.protection.earlier:
        for name, (down, _) in compose.concatenate(
            [lora.read(p) for p in plan.lineage]
        ).factors.items():
            guard = found[name]
            found[name] = Protected(
                join(guard.inputs, orthonormal(down.mT)), guard.outputs, guard.soft
            )
    return found


def _optimizer(
    factors: list[Tensor], settings: TrainSettings, rate: float
) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(
            factors, lr=rate, weight_decay=settings.weight_decay, fused=factors[0].is_cuda
        )
    return Muon(factors, rate, weight_decay=settings.weight_decay)


def learning_rate(plan: TrainPlan, base: Any) -> float:
    """The plan's rate, or one that falls with the model's width."""
    if plan.settings.learning_rate is not None:
        return plan.settings.learning_rate
    return REFERENCE_RATE * REFERENCE_WIDTH / float(base.config.hidden_size)


def steps_needed(settings: TrainSettings, facts: int, earlier: int = 0) -> int:
    """The number of steps: few for few facts, new and `earlier`, enough that each new one is seen
    `epochs` times, and more for many new ones or beside many earlier ones.
    """
    if settings.steps is not None:
        return settings.steps
    replayed = earlier if settings.replayed_per_step else 0
    few = settings.min_steps + settings.steps_per_fact * (facts + replayed)
    usual = min(few, settings.base_steps)
    needed = math.ceil(settings.epochs * facts / settings.facts_in_step(facts))
    doublings = math.log2(
        max(1.0, facts / settings.large_run_facts, replayed / settings.large_run_facts)
    )
    longer = 1 + settings.steps_per_doubling * doublings
    return min(round(max(usual, needed) * longer), settings.max_steps)


def _rate(step: int, steps: int, settings: TrainSettings, state: State) -> float:
    """Share of the peak rate: linear warm-up, linear decay; steeper once the end was decided."""
    warm = min(1.0, (step + 1) / (settings.warmup + 1))
    if state.end is not None and state.stopped is not None:
        at_stop = (steps - state.stopped) / steps
        return warm * at_stop * (state.end - step) / (state.end - state.stopped + 1)
    return warm * (steps - step) / steps


def _learnt(state: State, plan: TrainPlan, step: int, steps: int) -> bool:
    bound = plan.settings.stop_loss
    if bound is None or step + 1 < steps // 2:
        return False
    latest = state.latest or {}
    earlier = [latest[fact.id] for fact in plan.replay if fact.id in latest]
    return all(latest.get(fact.id, math.inf) < bound for fact in plan.facts) and (
        not earlier or fmean(earlier) < bound
    )


def _recorded(
    attached: Attached,
    pools: Pools,
    plan: TrainPlan,
    size: int,
    pad: int,
    device: torch.device,
    folder: Path | None,
) -> Reference:
    """The reference with what it says on all that is held to it, as far as there is room."""
    texts = [text for paraphrases in (*pools.reasoning, *pools.known) for text in paraphrases]
    return record(
        attached.model,
        attached.reference,
        texts,
        max_tokens=size,
        pad=pad,
        device=device,
        base_hash=plan.base_hash,
        folder=folder,
    )


def _odds(reference: Reference, pools: Pools, entropy_weight: float) -> list[float]:
    """How often each solution is drawn beside the others: more, the less sure the reference is.

    What a solution loses is lost where the reference itself is in entropy_weight, and on the rest
    the divergence has hardly any gradient. What is not recorded counts as the mean.
    """
    found = [reference.entropy(paraphrases[0]) for paraphrases in pools.reasoning]
    known = [one for one in found if one is not None]
    mean = sum(known) / max(len(known), 1) or 1.0
    return [1 + entropy_weight * (mean if one is None else one) / mean for one in found]


def _admissible(
    model: Any, pools: Pools, plan: TrainPlan, size: int, pad: int, device: torch.device
) -> float:
    rng = random.Random(f"share:{plan.seed}")
    count = plan.settings.facts_in_step(len(pools.new))
    chosen = [rng.choice(v) for v in pools.new[:count]]
    with projection.GradientShare(model, NEW) as share:
        backward(model, Aims(chosen), size, pad, device)
    model.zero_grad(set_to_none=True)
    return share.value


def _save(
    work: Path,
    fingerprint: str,
    step: int,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    state: State,
) -> None:
    factors = {name: p.detach().cpu() for name, p in parameters.items()}
    small = {**vars(state)}
    checkpoint.save(
        work, fingerprint, checkpoint.Saved(step, factors, optimizer.state_dict(), small)
    )


def _resume(
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    saved: checkpoint.Saved | None,
    max_tokens: int,
) -> tuple[int, State]:
    """The step to go on with and the state there; factors and optimiser as they were saved."""
    if saved is None:
        return 0, State(max_tokens=max_tokens)
    for name, parameter in parameters.items():
        parameter.data.copy_(saved.factors[name])
    optimizer.load_state_dict(dict(saved.optimizer))
    return saved.step, State(**saved.state)
