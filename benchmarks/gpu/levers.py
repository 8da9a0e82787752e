"""The step with each lever turned the other way, beside the step as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from unittest import mock

import torch

from adapters import losses, passes, recipe
from adapters.config import TrainConfig
from adapters.lm_head import WholeHead
from adapters.precision import reduced
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.runs import Watched, figures, timed, usual


@dataclass(frozen=True)
class Lever:
    """A change of the config, or of the code while it is in force."""

    config: Mapping[str, Any] = field(default_factory=dict)
    inside: Callable[[], AbstractContextManager[object]] = nullcontext


@contextmanager
def _projected_in_every_pass(model: Any, device: torch.device, tokens: int) -> Iterator[None]:
    """Instead of once a step."""
    with reduced(device):
        yield


def _whole(model: Any) -> WholeHead:
    """Instead of in chunks."""
    return WholeHead(model.get_output_embeddings())


LEVERS = {
    "passes of 1,024 tokens": Lever({"max_tokens": 1024}),
    "passes of 8,192 tokens": Lever({"max_tokens": 8192}),
    "passes of 16,384 tokens": Lever({"max_tokens": 16384}),
    "prefix read with every text": Lever(
        inside=lambda: mock.patch.object(passes, "constant_prefix", lambda _: ())
    ),
    "padded rows": Lever(inside=lambda: mock.patch.object(passes, "packable", lambda _: False)),
    "whole logits": Lever(inside=lambda: mock.patch.object(losses, "head_of", _whole)),
    "projected in every pass": Lever(
        inside=lambda: mock.patch.object(recipe, "fast_passes", _projected_in_every_pass)
    ),
    "no KL terms": Lever({"kl_weight": 0.0}),
}


def run(bench: Bench) -> dict[str, Any]:
    """For each lever its figures, and `ratio`: its seconds for a text over those of the usual step.

    What the time did not suffice for is named in `not_reached`.
    """
    config = usual(bench)
    small = TrainConfig(batch_preset="small").resolved("cuda", bench.shape.facts)
    levers = {"small batch preset": Lever(small.model_dump()), **LEVERS}
    each = bench.left / (len(levers) + 2) / 2
    plain = timed(bench, config, Watched(), within=each)
    of_text = median(plain.seconds) / plain.steps[0].texts
    found: dict[str, Any] = {"usual": figures(bench, plain)}
    waiting = dict(levers)
    for name, lever in levers.items():
        if bench.left < 2 * each:
            break
        with lever.inside():
            changed = config.model_copy(update=dict(lever.config))
            timing = timed(bench, changed, Watched(), within=each)
        seconds = median(timing.seconds) / timing.steps[0].texts
        found[name] = {**figures(bench, timing), "ratio": round(seconds / of_text, 3)}
        del waiting[name]
    return {**found, "not_reached": sorted(waiting)}
