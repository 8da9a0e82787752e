"""The card of a probe: its settings, sizes, overlap between seeds, energies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from adapters import svf
from adapters.moments import Moment
from adapters.probe import FORMAT, Protection
from adapters.subspace import energy_rank
from policies.records import Record

INFORMATIVE_AGREEMENT = 0.25
LLAMA_8B = {"layers": 32, "narrow": 4096, "parameters": 8_030_261_248}


class ProbeConfig(Record):
    """How a probe is fitted."""

    share: float = Field(default=Protection().share, gt=0.0, le=1.0)
    """Share of each matrix's input directions that is kept: as many as protection asks for."""
    keep_bases: bool = False
    """Whether large singular bases stay with the probe: protection by `svf` reads them."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the SVF factors' fits; none: the moments alone, in minutes where the fits take hours."""
    steps: int = Field(default=300, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0.0)
    decay: float = Field(default=1e-4, ge=0.0)
    """Weight of Σδ² in the loss."""
    batch: int = Field(default=16, ge=1)
    """Examples in a step."""
    max_length: int = Field(default=1024, ge=8)
    """Tokens of an example; longer ones are cut."""
    max_tokens: int = Field(default=8192, ge=8)
    """Padded tokens in one forward pass."""


@dataclass(frozen=True, slots=True)
class SVFFit:
    """What fitting the SVF factors found: σ (n,) and δ (seeds, n) of every matrix, and the held-out
    loss of the skill before and with each seed's factors.
    """

    tensors: Mapping[str, Tensor]
    before: float
    after: Sequence[float]


def describe(
    model: Any,
    matrices: Mapping[str, nn.Linear],
    svf_fit: SVFFit | None,
    moment_of: Callable[[str], Moment],
    settings: ProbeConfig,
) -> dict[str, Any]:
    """The card's content: sizes and energies; of an SVF fit the seeds' overlap against chance and
    the skill's loss.

    A probe is called informative when its seeds agree beyond chance by a quarter of what is
    possible, (J − chance)/(1 − chance) ≥ 0.25, and every seed lowered the skill's loss.
    """
    per_matrix: dict[str, dict[str, Any]] = {}
    for name, matrix in matrices.items():
        moment = moment_of(name)
        per_matrix[name] = {
            "inputs": matrix.in_features,
            "outputs": matrix.out_features,
            "narrow": min(matrix.in_features, matrix.out_features),
            "input_directions_for_energy": {
                str(share): min(energy_rank(moment.energies(), share), matrix.in_features)
                for share in (0.9, 0.99, 0.999)
                if moment.energy(len(moment.values)) >= share
            },
        }
    card = {
        "format": FORMAT,
        "settings": settings.model_dump(mode="json"),
        "base_parameters": sum(p.numel() for p in model.parameters()),
        "skill": {},
        "matrices": per_matrix,
    }
    return card if svf_fit is None else card | _of_svf(card, svf_fit)


def _of_svf(card: dict[str, Any], fit: SVFFit) -> dict[str, Any]:
    """What the card says of the SVF factors; each matrix's own figures are added to its entry."""
    rule = Protection(kind="svf")
    overlaps, chances = [], []
    for name, entry in card["matrices"].items():
        sigma, deltas = fit.tensors[f"{name}.sigma"], fit.tensors[f"{name}.delta"]
        chosen = svf.selections(sigma, deltas, energy=rule.svf_energy, cap=rule.svf_cap)
        overlap, chance = svf.agreement(chosen)
        overlaps.append(overlap)
        chances.append(chance)
        critical = int((chosen.sum(0) >= min(rule.svf_seeds, len(chosen))).sum())
        entry |= {"critical": critical, "overlap": overlap, "chance": chance}
    values = sum(entry["narrow"] for entry in card["matrices"].values())
    found, chance = sum(overlaps) / len(overlaps), sum(chances) / len(chances)
    agreement = (found - chance) / (1 - chance) if chance < 1 else 0.0
    at_8b = 3 * LLAMA_8B["layers"] * LLAMA_8B["narrow"]
    lowered = all(loss < fit.before for loss in fit.after)
    return {
        "values_per_seed": values,
        "share_of_base": values / card["base_parameters"],
        "at_llama_3_1_8b": {"values": at_8b, "share_of_base": at_8b / LLAMA_8B["parameters"]},
        "overlap": {
            "jaccard": found,
            "chance": chance,
            "agreement": agreement,
            "needed": INFORMATIVE_AGREEMENT,
        },
        "skill": {"loss_before": fit.before, "loss_after": list(fit.after)},
        "informative": agreement >= INFORMATIVE_AGREEMENT and lowered,
    }
