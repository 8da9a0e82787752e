"""One flat training loop: a LoRA that moves only in the free subspace, with replay."""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from adapters import checkpoint, lora, models, projection, store
from adapters.attach import NEW, Attached
from adapters.errors import TrainingDiverged
from adapters.losses import KLTerm, Objective, accumulate_gradients
from adapters.passes import Passes
from adapters.plans import TrainPlan, TrainProgress, TrainReport
from adapters.processes import ALONE, Processes, StepFigures
from adapters.progress import State, conclude
from adapters.projection import Protected
from adapters.recipe import Recipe
from adapters.reference import Reference, record
from adapters.replay import Pools, draw, encode_pools
from adapters.schedule import facts_in_step, kl_share, peak_rate, rate_share, steps_needed
from adapters.synthesis import written

PRODUCT = Recipe()


def train_adapter(
    plan: TrainPlan,
    *,
    out: Path,
    work: Path,
    progress: Callable[[TrainProgress], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    recipe: Recipe = PRODUCT,
    records: Path | None = None,
    processes: Processes = ALONE,
    stopping: Callable[[], bool] = lambda: False,
) -> TrainReport:
    """Train one adapter by `plan` and write it to `out` as a plain PEFT LoRA in fp32.

    What the base says on replayed texts, and traces that it wrote itself, are kept in `records`
    for the next run. `processes` all call this with the same arguments; the first alone writes.
    Once `stopping` says so, the step under way ends with a checkpoint, and `progress`, told of it,
    ends the run by an exception.

    Resumes from the newest checkpoint in `work`, and then ends with the same bytes as a run that
    was never cut off (on the same machine and number of threads). Raises `NoFreeSpace` before any
    training, `TrainingDiverged` when the loss is not finite, `BrokenAdapter` when the saved tensors
    leak into the protected space by more than 5e-3.
    """
    started = clock()
    session = _begin(plan, recipe, work, records, processes)
    saved = began = clock()
    for step in range(session.first, session.steps):
        if session.state.end is not None and step >= session.state.end:
            break
        loss, stopped = session.take(step, stopping)
        end = session.state.end or session.steps
        left = (clock() - began) / (step + 1 - session.first) * (end - step - 1)
        if stopped:
            session.save(step + 1)
        told = TrainProgress(
            step=step + 1, steps=end, loss=loss, seconds_left=left, stopping=stopped
        )
        progress(told)
        if clock() - saved >= plan.config.checkpoint_s and step + 1 < session.steps:
            session.save(step + 1)
            saved = clock()
    return session.finish(out, lambda: clock() - started)


@dataclass
class Session:
    """A run between its preparation and its end: what every step needs, and its state."""

    plan: TrainPlan
    recipe: Recipe
    processes: Processes
    work: Path
    fingerprint: str
    attached: Attached
    protected: Mapping[str, Protected]
    free: int
    """The smallest free dimension of any matrix."""
    pools: Pools
    passes: Passes
    reference: Reference | None
    factors: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    peak: float
    steps: int
    first: int = 0
    """The step with which a resumed run begins."""
    state: State = field(default_factory=State)
    admissible: float | None = None

    def take(self, step: int, stopping: Callable[[], bool]) -> tuple[float, bool]:
        """Take one step; the loss per token of its new facts, and whether to stop after it."""
        config, state, model = self.plan.config, self.state, self.attached.model
        share = rate_share(config, step, self.steps, state.stopped, state.end)
        self.optimizer.param_groups[0]["lr"] = self.peak * share
        objective = _objective(self.pools, self.plan, step, self.reference)
        own = self.recipe.gradients(model, self.processes.share(objective), self.passes)
        loss, of_facts, stopped = self.processes.summed(
            self.factors.values(), StepFigures(*own, stopping())
        )
        norm = torch.nn.utils.clip_grad_norm_(list(self.factors.values()), config.clip)
        _require_finite(loss, float(norm), step, self.steps)
        self.recipe.update(model, self.optimizer)
        state.note(loss, of_facts)
        if state.end is None and _learnt(state, self.plan, step, self.steps):
            state.stopped, state.end = step + 1, min(step + 1 + config.cooldown, self.steps)
        return loss, stopped

    def save(self, step: int) -> None:
        """Write a checkpoint from which `step` is the next, with any number of processes."""
        if not self.processes.first:
            return
        factors = {name: factor.detach().cpu() for name, factor in self.factors.items()}
        small = {**vars(self.state), "max_tokens": self.passes.max_tokens}
        saved = checkpoint.Saved(step, factors, self.optimizer.state_dict(), small)
        checkpoint.save(self.work, self.fingerprint, saved)

    def resume(self) -> None:
        """Go back to where the newest checkpoint was written, if there is one of this plan."""
        saved = checkpoint.latest(self.work, self.fingerprint)
        if saved is None:
            return
        for name, factor in self.factors.items():
            factor.data.copy_(saved.factors[name])
        self.optimizer.load_state_dict(dict(saved.optimizer))
        state = dict(saved.state)
        self.passes.max_tokens = state.pop("max_tokens")
        self.first, self.state = saved.step, State(**state)

    def finish(self, out: Path, seconds: Callable[[], float]) -> TrainReport:
        """Write the adapter to `out` and check it as it was written."""
        projection.fold_into_weights(self.attached.model, NEW)
        with self.processes.first_before_others():
            if self.processes.first:
                lora.write(out, self.recipe.result(self.attached), self.plan.base_name)
        figures = (self.steps, self.free, self.admissible, seconds())
        return conclude(self.plan, out, self.protected, self.state, *figures)


def fingerprint_of(plan: TrainPlan) -> str:
    """Changes with all that a run depends on, but not with where that lies: adapters and probes are
    named by their content, and the state directory that holds them may be moved."""
    probe = None if plan.probe_dir is None else store.read_manifest(plan.probe_dir)["sha256"]
    named = [[path.name for path in paths] for paths in (plan.lineage, plan.start)]
    text = plan.model_dump_json(exclude={"model_dir", "lineage", "start", "probe_dir"})
    return hashlib.sha256(f"{text}{json.dumps([named, probe])}".encode()).hexdigest()


def _begin(
    plan: TrainPlan, recipe: Recipe, work: Path, records: Path | None, processes: Processes
) -> Session:
    """Everything up to the first step, or up to where a checkpoint was written."""
    config, device = plan.config, models.pick_device()
    tokenizer = models.load_tokenizer(plan.model_dir)
    pools = encode_pools(plan, tokenizer)
    base = models.load_base(plan.model_dir, device)
    passes = Passes.of(config, base, tokenizer)
    with processes.first_before_others():
        pools = _with_written_traces(pools, base, tokenizer, plan, records)
    protected = recipe.protected(base, plan)
    free = projection.check_free_space(protected, plan.rank)
    attached = recipe.attach(base, plan)
    projection.install(attached.model, NEW, protected, begun=bool(plan.start))
    reference = None
    if config.kl_weight:
        with processes.first_before_others():
            reference = _recorded(attached, pools, plan, passes, records)
        pools = replace(pools, odds=_odds(reference, pools, config.entropy_weight))
    factors = {name: p for name, p in attached.model.named_parameters() if p.requires_grad}
    rate = peak_rate(config, base.config.hidden_size)
    session = Session(
        plan=plan,
        recipe=recipe,
        processes=processes,
        work=work,
        fingerprint=fingerprint_of(plan),
        attached=attached,
        protected=protected,
        free=free,
        pools=pools,
        passes=passes,
        reference=reference,
        factors=factors,
        optimizer=recipe.optimizer(list(factors.values()), config, rate),
        peak=rate,
        steps=steps_needed(config, len(pools.new), len(pools.old)),
    )
    session.resume()
    if session.first == 0 and processes.first:
        session.admissible = _admissible(session)
    return session


def _with_written_traces(
    pools: Pools, base: Any, tokenizer: Any, plan: TrainPlan, folder: Path | None
) -> Pools:
    """With traces by the base itself where fewer are given than are to be replayed."""
    config = plan.config
    missing = config.min_traces - len(pools.reasoning)
    if missing <= 0 or not config.kl_weight_reasoning or not config.reasoning_per_step:
        return pools
    texts = written(
        base, tokenizer, pools.reasoning, missing, base_hash=plan.base_hash, folder=folder
    )
    return replace(pools, reasoning=[*pools.reasoning, *texts])


def _recorded(
    attached: Attached, pools: Pools, plan: TrainPlan, passes: Passes, folder: Path | None
) -> Reference:
    """The base with its predictions on all texts of the KL terms, as far as there is room."""
    texts = [text for forms in (*pools.reasoning, *pools.known) for text in forms]
    return record(
        attached.model, attached.reference, texts, passes, base_hash=plan.base_hash, folder=folder
    )


def _odds(reference: Reference, pools: Pools, entropy_weight: float) -> list[float]:
    """How often each trace is drawn beside the others: more, the less sure the base is.

    A trace is lost where the base itself is unsure; on the rest the divergence has hardly any
    gradient. What is not recorded counts as the mean.
    """
    found = [reference.entropy(forms[0]) for forms in pools.reasoning]
    known = [one for one in found if one is not None]
    mean = sum(known) / max(len(known), 1) or 1.0
    return [1 + entropy_weight * (mean if one is None else one) / mean for one in found]


def _objective(pools: Pools, plan: TrainPlan, step: int, reference: Reference | None) -> Objective:
    """Facts by their labels; the rest by the base's own predictions, or by labels too."""
    config = plan.config
    drawn = draw(pools, config, plan.seed, step)
    if reference is None:
        return Objective([*drawn.new, *drawn.old, *drawn.known, *drawn.reasoning])
    share = kl_share(config, len(pools.new), len(pools.old))
    terms = (
        KLTerm(drawn.known, share * config.kl_weight, reference.states),
        KLTerm(drawn.reasoning, share * config.kl_weight_reasoning, reference.states),
    )
    return Objective(drawn.new, drawn.old, [one for one in terms if one.texts], config.temperature)


def _require_finite(loss: float, norm: float, step: int, steps: int) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainingDiverged(
            f"step {step + 1} of {steps}: loss {loss}, gradient norm {norm}; "
            "lower learning_rate in TrainConfig"
        )


def _learnt(state: State, plan: TrainPlan, step: int, steps: int) -> bool:
    bound = plan.config.stop_loss
    if bound is None or step + 1 < int(plan.config.earliest_end * steps):
        return False
    latest = state.latest or {}
    earlier = [latest[fact.id] for fact in plan.replay if fact.id in latest]
    return all(latest.get(fact.id, math.inf) < bound for fact in plan.facts) and (
        not earlier or fmean(earlier) < bound
    )


def _admissible(session: Session) -> float:
    """The share of the facts' first gradient that the protected subspaces let through."""
    model, pools, plan = session.attached.model, session.pools, session.plan
    rng = random.Random(f"share:{plan.seed}")
    count = facts_in_step(plan.config, len(pools.new))
    chosen = [rng.choice(v) for v in pools.new[:count]]
    with projection.GradientShare(model, NEW) as share:
        accumulate_gradients(model, Objective(chosen), session.passes)
    model.zero_grad(set_to_none=True)
    return share.value
