"""The frozen probe of one base: what a skill needs of every matrix, and how to protect it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adapters import moments, svf
from adapters.errors import ProbeMismatch
from adapters.models import base_hash
from adapters.moments import Moment
from adapters.projection import Protected
from adapters.subspace import empty, join, orthonormal
from policies.records import Record

TENSORS = "probe.safetensors"
CARD = "probe.json"
BASES = "bases"
FORMAT = 1

__all__ = ["CARD", "FORMAT", "TENSORS", "Probe", "Protection", "base_hash"]


class Protection(Record):
    """What an adapter must leave alone, and how strictly."""

    kind: Literal["svf", "activations", "svf+activations", "none"] = "activations"
    form: Literal["hard", "soft"] = "hard"
    """Of the activations' part: an exact projection, or λ(C+λI)⁻¹."""
    share: float = Field(default=0.2, gt=0.0, le=1.0)
    """Of the activations' part: share of the input directions, or of their energy."""
    by: Literal["directions", "energy"] = "directions"
    strength: float = Field(default=0.01, gt=0.0)
    """Of the soft form: λ as a multiple of the mean eigenvalue."""
    svf_energy: float = Field(default=0.9, gt=0.0, le=1.0)
    """Share of the score σ²δ² that a seed's critical set holds."""
    svf_cap: float = Field(default=0.5, gt=0.0, le=1.0)
    """The most components of a matrix that can be critical, as a share of all."""
    svf_seeds: int = Field(default=2, ge=1)
    """In how many seeds' sets a component must be."""


@dataclass(frozen=True)
class Probe:
    """Per matrix: singular values σ (n,), the seeds' δ (seeds, n) and the inputs' moments."""

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
            self._moments[owner] = moments.unpack(owner, size, self.tensors)
        return self._moments[owner]

    def critical(self, name: str, protection: Protection) -> Tensor:
        """Indices of the critical components by the rule in `protection`."""
        return svf.critical(
            self.sigma(name),
            self.deltas(name),
            energy=protection.svf_energy,
            cap=protection.svf_cap,
            seeds=protection.svf_seeds,
        )

    def narrow_vectors(self, name: str, weight: Tensor) -> Tensor:
        """Singular vectors (n, n) of the narrow side: as kept when fitting, else computed."""
        kept = self.directory / BASES / f"{name}.safetensors"
        if kept.is_file():
            return load_file(kept)["vectors"].double()
        return svf.decompose(weight)[1]

    def protected(self, name: str, weight: Tensor, protection: Protection) -> Protected:
        """The subspaces that an update of this matrix, whose served `weight` is given, spares.

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
                inputs = join(inputs, moment.basis(share=protection.share, by=protection.by))
        return Protected(inputs, outputs, soft)

    def _tensor(self, key: str) -> Tensor:
        try:
            return self.tensors[key]
        except KeyError:
            raise ProbeMismatch(f"the probe at {self.directory} has no {key}") from None


def component_spaces(weight: Tensor, narrow: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Bases of the chosen singular components' input and output vectors of a weight (out, in).

    `narrow` holds the narrow side's vectors; the other side follows as U = W V Σ⁻¹ (or
    V = Wᵀ U Σ⁻¹), so that components with σ = 0 have none there.
    """
    own = orthonormal(narrow[:, chosen])
    if svf.narrow_is_input(weight):
        return own, orthonormal(weight.double() @ own)
    return orthonormal(weight.double().mT @ own), own
