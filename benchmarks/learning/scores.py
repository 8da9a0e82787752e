"""Which singular components are protected: those highest by one score or another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from adapters import models, svf
from adapters.examples import collate
from adapters.losses import token_losses
from adapters.plans import TrainPlan
from adapters.probe import Probe, Protection, component_spaces
from adapters.projection import Protected
from adapters.recipe import Recipe
from adapters.replay import encode_pools

SVF: Final = Protection(kind="svf")
CALIBRATION: Final = 512


@dataclass(frozen=True)
class Looked:
    """The base with its probe, before anything is trained."""

    base: Any
    plan: TrainPlan
    probe: Probe

    @property
    def matrices(self) -> dict[str, nn.Linear]:
        """What is trained, by name."""
        return models.matrices(self.base, self.plan.config.targets)

    def narrow(self, name: str) -> Tensor:
        """The narrow side's singular vectors (n, n) of a matrix."""
        return self.probe.narrow_vectors(name, self.matrices[name].weight.detach().cpu())


# Of each matrix's components (n,): the highest are protected.
Score: TypeAlias = Callable[[Looked], Mapping[str, Tensor]]
# How many are protected, by the singular values and the critical set of the paper's score.
Count: TypeAlias = Callable[[Tensor, Tensor], int]


def as_many(_sigma: Tensor, critical: Tensor) -> int:
    """As many as are critical by the paper's score."""
    return len(critical)


def half(sigma: Tensor, _critical: Tensor) -> int:
    """Half of all."""
    return len(sigma) // 2


class Components(Recipe):
    """Protects, on both sides, the components with the highest score."""

    def __init__(self, score: Score, count: Count = as_many) -> None:
        self._score, self._count = score, count

    def protected(self, base: nn.Module, plan: TrainPlan) -> dict[str, Protected]:
        """By matrix, the chosen components' singular vectors."""
        assert plan.probe_dir is not None  # noqa: S101 - methods with components have a probe
        looked = Looked(base, plan, Probe.load(plan.probe_dir, plan.base_hash))
        scores, found = self._score(looked), {}
        for name, matrix in looked.matrices.items():
            number = self._count(looked.probe.sigma(name), looked.probe.critical(name, SVF))
            chosen = scores[name].topk(number).indices
            weight = matrix.weight.detach().cpu()
            found[name] = Protected(*component_spaces(weight, looked.narrow(name), chosen), None)
        return found


def at_random(looked: Looked) -> dict[str, Tensor]:
    """Drawn, the same for every run."""
    found = {}
    for name in looked.matrices:
        generator = torch.Generator().manual_seed(sum(name.encode()))
        drawn = torch.randperm(len(looked.probe.sigma(name)), generator=generator)
        found[name] = -drawn.argsort().double()
    return found


def largest(looked: Looked) -> dict[str, Tensor]:
    """σ."""
    return {name: looked.probe.sigma(name) for name in looked.matrices}


def relative_change(looked: Looked) -> dict[str, Tensor]:
    """|δ|, the seeds' mean: how much the skill scales a component, however large it is."""
    return {name: looked.probe.deltas(name).abs().mean(dim=0) for name in looked.matrices}


def passed_energy(looked: Looked) -> dict[str, Tensor]:
    """σ² E[(v·x)²] over the skill's inputs x: what passes through a component."""
    found = {}
    for name, matrix in looked.matrices.items():
        weight, basis = matrix.weight.detach().cpu().double(), looked.narrow(name).double()
        moment = looked.probe.moment(name)
        passed = weight @ moment.vectors.double() * moment.values.sqrt()
        if svf.narrow_is_input(weight):
            basis = nn.functional.normalize(weight @ basis, dim=0)
        found[name] = (basis.mT @ passed).square().sum(dim=1)
    return found


def fisher(looked: Looked) -> dict[str, Tensor]:
    """E[(∂ loss/∂δ)²] at δ = 0 over the skill's reasoning traces, one at a time."""
    plan, model = looked.plan, looked.base
    tokenizer = models.load_tokenizer(plan.model_dir)
    pad, device = int(tokenizer.pad_token_id), next(model.parameters()).device
    texts = [paraphrases[0] for paraphrases in encode_pools(plan, tokenizer).reasoning]
    chosen = texts[:: max(1, len(texts) // CALIBRATION)]
    scalings = {name: svf.Scaling(m, looked.narrow(name)) for name, m in looked.matrices.items()}
    found = {name: torch.zeros_like(one.delta) for name, one in scalings.items()}
    try:
        for text in chosen:
            loss = token_losses(model, collate([text], pad).to(device))[0].sum()
            slopes = torch.autograd.grad(loss, [one.delta for one in scalings.values()])
            for name, slope in zip(scalings, slopes, strict=True):
                found[name] += slope.square() / len(chosen)
    finally:
        for scaling in scalings.values():
            scaling.handle.remove()
    return {name: one.detach().cpu() for name, one in found.items()}
