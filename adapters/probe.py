"""The frozen probe of one base: what a skill uses of every matrix, and how to protect it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adapters import moments, probe_size, svf
from adapters.errors import ProbeMismatch
from adapters.models import base_hash
from adapters.moments import Moment
from adapters.projection import Protected
from adapters.subspace import empty, join, orthonormal
from policies.errors import ConfigError
from policies.records import Record

TENSORS = "probe.safetensors"
CARD = "probe.json"
BASES = "bases"
MOMENTS = "moments"
FORMAT = 1

__all__ = ["CARD", "FORMAT", "TENSORS", "Probe", "Protection", "base_hash"]


class Protection(Record):
    """Which directions an adapter must not touch, and how strictly."""

    kind: Literal["svf", "activations", "svf+activations", "none"] = "activations"
    form: Literal["hard", "soft"] = "hard"
    """For the activations: an exact projection, or λ(C+λI)⁻¹."""
    share: float = Field(default=0.2, gt=0.0, le=1.0)
    """For the activations: share of the input directions, or of their energy."""
    by: Literal["directions", "energy"] = "directions"
    strength: float = Field(default=0.01, gt=0.0)
    """For the soft form: λ as a multiple of the mean eigenvalue."""
    svf_energy: float = Field(default=0.9, gt=0.0, le=1.0)
    """Share of the score σ²δ² that the critical components of one seed hold."""
    svf_cap: float = Field(default=0.5, gt=0.0, le=1.0)
    """Largest share of a matrix's components that can be critical."""
    svf_seeds: int = Field(default=2, ge=1)
    """For how many seeds a component must be critical."""


@dataclass(frozen=True)
class Probe:
    """Per matrix: the inputs' moments, and unless these were fitted alone, singular values σ (n,)
    and the seeds' δ (seeds, n).

    Moments of wide inputs lie in files of their own and are read when they are asked for.
    """

    directory: Path
    card: dict[str, Any]
    tensors: dict[str, Tensor]
    _moments: dict[str, Moment] = field(default_factory=dict)

    @staticmethod
    def load(directory: Path, base: str) -> Probe:
        """Read a probe; `ProbeMismatch` when it is damaged or was fitted on another base.

        `base` is the `base_hash` of the weights that are served.
        """
        try:
            card = json.loads((directory / CARD).read_text())
            tensors = load_file(directory / TENSORS)
        except (OSError, ValueError, SafetensorError) as error:
            raise ProbeMismatch(f"no readable probe at {directory}: {error}") from error
        if card.get("format") != FORMAT:
            raise ProbeMismatch(f"{directory}: format {card.get('format')}, expected {FORMAT}")
        if card.get("base_hash") != base:
            raise ProbeMismatch(
                f"the probe at {directory} belongs to the base {str(card.get('base_hash'))[:12]}, "
                f"served is {base[:12]}: fit one with `palorad probe fit`"
            )
        return Probe(directory, card, tensors)

    @property
    def has_svf(self) -> bool:
        """Whether SVF factors were fitted, not the moments alone."""
        return bool(self.card["settings"]["seeds"])

    def require(self, share: float, *, svf: bool = False) -> None:
        """Raise `ConfigError` where it keeps fewer than `share` of a matrix's directions, or no
        `svf` factors though they are read.
        """
        if svf and not self.has_svf:
            raise ConfigError(
                f"{self.directory}: holds moments alone, and SVF factors are asked for; remove "
                "this directory and a new probe is fitted"
            )
        lacking = probe_size.shortfall(self.card, share)
        if lacking is not None:
            raise ConfigError(
                f"{self.directory}: {lacking}; lower protection.share, or remove this directory "
                "and a new probe is fitted"
            )

    @property
    def matrices(self) -> tuple[str, ...]:
        """The names of the matrices that it covers."""
        return tuple(self.card["matrices"])

    def sigma(self, name: str) -> Tensor:
        """Singular values (n,) from large to small."""
        return self._tensor(f"{name}.sigma")

    def deltas(self, name: str) -> Tensor:
        """The learnt δ of every seed, (seeds, n); m = 1 + δ scales the singular values."""
        return self._tensor(f"{name}.delta")

    def moment(self, name: str) -> Moment:
        """The second moments of the matrix's inputs over the skill's text."""
        owner = moments.input_owner(name)
        if owner not in self._moments:
            size = int(self.card["matrices"][name]["inputs"])
            self._moments[owner] = moments.unpack(owner, size, self._saved_moment(owner))
        return self._moments[owner]

    def critical(self, name: str, protection: Protection) -> Tensor:
        """Indices of the critical components: those of the largest score, by `protection`."""
        return svf.critical(
            self.sigma(name),
            self.deltas(name),
            energy=protection.svf_energy,
            cap=protection.svf_cap,
            seeds=protection.svf_seeds,
        )

    def narrow_vectors(self, name: str, weight: Tensor) -> Tensor:
        """Singular vectors (n, n) of the narrow side: those kept by the fit, else computed."""
        kept = self.directory / BASES / f"{name}.safetensors"
        if kept.is_file():
            return load_file(kept)["vectors"].double()
        return svf.decompose(weight)[1]

    def protected(self, name: str, weight: Tensor, protection: Protection) -> Protected:
        """The directions that an update of this matrix with the served `weight` must not touch.

        `svf`: input and output vectors of the critical components. `activations`: the leading
        input directions of the skill. Both: the span of both inputs, and the outputs of `svf`.
        """
        out_features, in_features = weight.shape
        inputs, outputs = empty(in_features), empty(out_features)
        soft: Tensor | None = None
        weight = weight.detach().cpu()
        if protection.kind in ("svf", "svf+activations"):
            inputs, outputs = component_spaces(
                weight, self.narrow_vectors(name, weight), self.critical(name, protection)
            )
        if protection.kind in ("activations", "svf+activations"):
            moment = self.moment(name)
            if protection.form == "soft":
                soft = moment.soft(protection.strength)
            else:
                basis = moment.basis(share=protection.share, by=protection.by)
                inputs = join(inputs, basis) if inputs.shape[1] else basis
        return Protected(inputs, outputs, soft)

    def _saved_moment(self, owner: str) -> dict[str, Tensor]:
        """The tensors that hold the moment of `owner`: the probe's own, or a file for it."""
        if f"{owner}.trace" in self.tensors:
            return self.tensors
        path = self.directory / MOMENTS / f"{owner}.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise ProbeMismatch(
                f"{path} cannot be read: {error}; remove {self.directory} and fit the probe again"
            ) from error

    def _tensor(self, key: str) -> Tensor:
        try:
            return self.tensors[key]
        except KeyError:
            raise ProbeMismatch(f"the probe at {self.directory} has no {key}") from None


def component_spaces(weight: Tensor, narrow: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Bases of the chosen singular components' input and output vectors of a weight (out, in).

    `narrow` holds the narrow side's vectors; the other side follows as U = W V Σ⁻¹ (or
    V = Wᵀ U Σ⁻¹). Components with σ = 0 have no vectors there.
    """
    own = orthonormal(narrow[:, chosen])
    if svf.narrow_is_input(weight):
        return own, orthonormal(weight.double() @ own)
    return orthonormal(weight.double().mT @ own), own
