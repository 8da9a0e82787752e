"""Steps of the product's own training loop, timed one by one and ended when there are enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import Tensor

from adapters import models
from adapters.attach import Attached
from adapters.config import TrainConfig
from adapters.losses import Objective
from adapters.passes import Passes
from adapters.plans import TrainPlan, TrainProgress
from adapters.probe_size import directions
from adapters.projection import Protected
from adapters.recipe import Recipe
from adapters.trainer import train_adapter
from benchmarks.gpu.bench import Bench, resident
from benchmarks.gpu.shapes import peak
from benchmarks.scale.cost import Model, Step, step_flops

WARM = 3
SHARE = 0.2
TIMED: Final[dict[str, Any]] = {"stop_loss": None, "checkpoint_s": 1e9}
"""A run that is timed neither ends early nor writes checkpoints."""


class Enough(Exception):
    """A run has shown what it was started for."""


@dataclass
class Watched(Recipe):
    """The product's recipe, which notes what each step reads. As much is protected as by a probe,
    in directions drawn at random; nothing with a share of 0."""

    share: float = SHARE
    attached: Attached | None = None
    steps: list[Step] = field(default_factory=list)

    def protected(self, base: Any, plan: TrainPlan) -> Mapping[str, Protected]:
        """Random directions; gate and up share theirs, as by a probe."""
        return drawn(base, plan, self.share) if self.share else {}

    def attach(self, base: Any, plan: TrainPlan) -> Attached:
        """As the product."""
        self.attached = super().attach(base, plan)
        return self.attached

    def gradients(
        self, model: Any, objective: Objective, passes: Passes
    ) -> tuple[float, dict[str, float]]:
        """As the product."""
        self.steps.append(read_in(objective, passes))
        return super().gradients(model, objective, passes)


def read_in(objective: Objective, passes: Passes) -> Step:
    """What a step reads."""
    facts = [*objective.new, *objective.replayed]
    compared = [text for term in objective.kl_terms for text in term.texts]
    texts = [*facts, *compared]
    tokens = sum(len(one.ids) for one in texts)
    behind = len(passes.parted(texts, lambda one: one)[0])
    shared = len(passes.prefix) * max(behind - 1, 0)
    learnt, of_base = (sum(len(t.ids) - t.start for t in part) for part in (facts, compared))
    return Step(len(texts), tokens, tokens - shared, learnt, of_base)


def drawn(base: Any, plan: TrainPlan, share: float) -> dict[str, Protected]:
    """Protected inputs of every matrix on the CPU, as many as a probe would give; one draw for each
    width, copied for each layer, so that they take the memory that they would."""
    found: dict[str, Protected] = {}
    bases: dict[int, Tensor] = {}
    of_gate: Tensor | None = None
    for name, matrix in models.matrices(base, plan.config.targets).items():
        high, wide = matrix.weight.shape
        if wide not in bases:
            generator = torch.Generator(matrix.weight.device).manual_seed(plan.seed)
            start = torch.randn(
                wide, directions(wide, share), generator=generator, device=matrix.weight.device
            )
            bases[wide] = torch.linalg.qr(start)[0].cpu()
        shared = of_gate is not None and name.endswith("up_proj")
        inputs = of_gate if shared and of_gate is not None else bases[wide].clone()
        of_gate = inputs if name.endswith("gate_proj") else None
        found[name] = Protected(inputs, torch.zeros(high, 0, dtype=torch.float64))
    return found


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of each step after the first few, and what those steps read."""

    seconds: list[float]
    steps: list[Step]


def timed(
    bench: Bench,
    config: TrainConfig,
    recipe: Watched,
    *,
    most: int | None = None,
    within: float = 60.0,
    facts: int | None = None,
) -> Timing:
    """Steps of the product's loop on the model that is on the device already; it is as before
    afterwards.

    `most` of them, or as many as suit the shape; fewer if `within` seconds do not suffice, but
    three at least.
    """
    steps = WARM + (most or bench.shape.steps)
    plan = bench.plan(config.model_copy(update={**TIMED, "steps": steps}), facts)
    moments: list[float] = []

    def after(progress: TrainProgress) -> None:
        moments.append(bench.synchronise())
        enough = len(moments) >= WARM + 3 and moments[-1] - moments[0] > within
        if enough or progress.step == progress.steps:
            raise Enough

    base = bench.base()
    try:
        with resident(base), TemporaryDirectory() as folder:
            out, work = Path(folder, "out"), Path(folder, "work")
            kept = bench.folder / "records"
            train_adapter(plan, out=out, work=work, progress=after, recipe=recipe, records=kept)
    except Enough:
        pass
    finally:
        if recipe.attached is not None:
            recipe.attached.model.unload()
            recipe.attached = None
    seconds = [
        now - before for before, now in zip(moments[WARM - 1 :], moments[WARM:], strict=False)
    ]
    return Timing(seconds, recipe.steps[-len(seconds) :])


def figures(bench: Bench, timing: Timing) -> dict[str, Any]:
    """What a timing says: seconds of a step, tokens a second of all its texts, and MFU.

    A token that is read counts 4 N, and its attention; tokens of the shared prefix are read once.
    `mfu_of_products` counts what is multiplied instead: the output matrix only at learnt tokens,
    and the adapter's factors.
    """
    step = _median(timing.steps)
    seconds = median(timing.seconds)
    low, _, high = quantiles(timing.seconds, n=4)
    model = Model.of(bench.shape.config.to_dict())
    length = step.tokens / step.texts
    attention = 12 * (length / 2) * model.layers * model.heads * model.head_size
    counted = step.read * (4 * model.parameters + attention)
    products = step_flops(model, step, bench.shape.rank, length=round(length))
    most = peak(torch.cuda.get_device_name()) if bench.device.type == "cuda" else None
    return {
        "step_s": round(seconds, 4),
        "step_s_quartiles": [round(low, 4), round(high, 4)],
        "steps": len(timing.seconds),
        "texts": step.texts,
        "tokens": step.tokens,
        "tokens_read": step.read,
        "learnt": step.learnt + step.compared,
        "tokens_per_s": round(step.tokens / seconds, 1),
        "tflop_per_s": round(counted / seconds / 1e12, 3),
        "mfu": None if most is None else round(counted / seconds / most, 4),
        "mfu_of_products": None if most is None else round(products / seconds / most, 4),
    }


def _median(steps: list[Step]) -> Step:
    return Step(
        *(
            round(median(getattr(step, name) for step in steps))
            for name in ("texts", "tokens", "read", "learnt", "compared")
        )
    )


def usual(bench: Bench) -> TrainConfig:
    """The product's config for this device, with the large preset, which it has on a GPU."""
    return TrainConfig().resolved("cuda", bench.shape.facts)
