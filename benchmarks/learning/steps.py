"""What a step of training costs beside one of plain PEFT: `python -m benchmarks.learning.steps`.

Both learn the same texts from their labels with the same loop, in one process and in turns: ours
through projectors on every matrix, PEFT's LoRA without any. Once with the texts of a whole step
of the product in its third batch, once with its new facts alone: as short as a step gets.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
import torch

from adapters import models, projection
from adapters.attach import NEW, attach
from adapters.losses import Objective, accumulate_gradients
from adapters.passes import Passes
from adapters.plans import TrainPlan
from adapters.probe import Protection
from adapters.recipe import fast_passes, protect
from adapters.replay import draw, encode_pools
from benchmarks.learning.bases import BASES, Base
from benchmarks.learning.batches import batch
from benchmarks.learning.runs import RANK_BUDGET
from demo.report import machine_in_use, versions_in_use
from policies.records import PlanKind

OUT: Final = Path("benchmarks/results/steps.json")
PAIRS: Final = 60
WARM: Final = 5
KINDS: Final = (
    Protection(),
    Protection(share=0.7),
    Protection(form="soft"),
    Protection(kind="svf"),
    Protection(kind="svf+activations"),
)


def stepper(
    base: Base, protection: Protection, *, replayed: bool, projected: bool
) -> Callable[[int], float]:
    """A function that does step n and gives the seconds that it took."""
    batches = [batch(number, 36, 1, "selection").facts for number in (1, 2, 3)]
    plan = TrainPlan(
        kind=PlanKind.LEARN,
        rank=RANK_BUDGET,
        seed=0,
        model_dir=base.model_dir,
        base_hash=base.sha256,
        base_name=base.name,
        facts=batches[-1],
        replay=tuple(chain.from_iterable(batches[:-1])) if replayed else (),
        known=base.known if replayed else (),
        reasoning=base.reasoning if replayed else (),
        probe_dir=base.probe_dir,
        protection=protection,
    )
    device = models.pick_device()
    tokenizer = models.load_tokenizer(base.model_dir)
    bare = models.load_base(base.model_dir, device)
    pools, passes = encode_pools(plan, tokenizer), Passes.of(plan.config, bare, tokenizer)
    protected = protect(bare, plan)
    model = attach(bare, plan).model
    if projected:
        projection.install(model, NEW, protected)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    around = partial(fast_passes, model, device)

    def step(number: int) -> float:
        began = time.perf_counter()
        drawn = draw(pools, plan.config, 0, number)
        objective = Objective([*drawn.new, *drawn.old, *drawn.known, *drawn.reasoning])
        accumulate_gradients(model, objective, passes, around)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return step


def ratio(base: Base, protection: Protection, *, replayed: bool) -> list[float]:
    """Median of ours over PEFT's in pairs, and its interval of 95 %."""
    ours = stepper(base, protection, replayed=replayed, projected=True)
    plain = stepper(base, protection, replayed=replayed, projected=False)
    pairs = []
    for number in range(WARM + PAIRS):
        if number % 2:
            mine, theirs = ours(number), plain(number)
        else:
            theirs, mine = plain(number), ours(number)
        pairs.append(mine / theirs)
    found = np.array(pairs[WARM:])
    rng = np.random.default_rng(0)
    drawn = [np.median(rng.choice(found, len(found))) for _ in range(2000)]
    return [round(float(x), 4) for x in (np.median(found), *np.quantile(drawn, [0.025, 0.975]))]


def name(protection: Protection) -> str:
    """The kind, and what differs from the default."""
    changed = protection.model_dump(exclude_defaults=True, exclude={"kind"})
    return " ".join([protection.kind, *(f"{key}={value}" for key, value in changed.items())])


def main() -> None:
    """Every kind of protection on palorad-mini."""
    whole, alone = (
        {name(kind): ratio(BASES["mini"], kind, replayed=replayed) for kind in KINDS}
        for replayed in (True, False)
    )
    result = {
        "step_ratio": whole[name(Protection())],
        "by_protection": whole,
        "facts_alone": alone,
        "pairs": PAIRS,
        "versions": versions_in_use(),
        "machine": machine_in_use(),
    }
    OUT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({"whole": whole, "facts_alone": alone}, indent=2))


if __name__ == "__main__":
    main()
