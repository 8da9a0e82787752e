"""The card of a probe: its settings, sizes, overlap between seeds, energies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def describe(
    model: Any,
    matrices: Mapping[str, nn.Linear],
    tensors: Mapping[str, Tensor],
    moment_of: Callable[[str], Moment],
    settings: ProbeConfig,
    before: float,
    after: Sequence[float],
) -> dict[str, Any]:
    """The card's content: sizes, the seeds' overlap against chance, energies, the skill's loss.

    A probe is called informative when its seeds agree beyond chance by a quarter of what is
    possible, (J − chance)/(1 − chance) ≥ 0.25, and every seed lowered the skill's loss.
    """
    rule = Protection(kind="svf")
    per_matrix: dict[str, Any] = {}
    overlaps, chances = [], []
    for name, matrix in matrices.items():
        sigma, deltas = tensors[f"{name}.sigma"], tensors[f"{name}.delta"]
        chosen = svf.selections(sigma, deltas, energy=rule.svf_energy, cap=rule.svf_cap)
        overlap, chance = svf.agreement(chosen)
        overlaps.append(overlap)
        chances.append(chance)
        moment = moment_of(name)
        per_matrix[name] = {
            "inputs": matrix.in_features,
            "outputs": matrix.out_features,
            "narrow": sigma.shape[0],
            "critical": int((chosen.sum(0) >= min(rule.svf_seeds, len(chosen))).sum()),
            "overlap": overlap,
            "chance": chance,
            "input_directions_for_energy": {
                str(share): min(energy_rank(moment.energies(), share), matrix.in_features)
                for share in (0.9, 0.99, 0.999)
                if moment.energy(len(moment.values)) >= share
            },
        }
    values = sum(entry["narrow"] for entry in per_matrix.values())
    parameters = sum(p.numel() for p in model.parameters())
    found, chance = sum(overlaps) / len(overlaps), sum(chances) / len(chances)
    agreement = (found - chance) / (1 - chance) if chance < 1 else 0.0
    at_8b = 3 * LLAMA_8B["layers"] * LLAMA_8B["narrow"]
    return {
        "format": FORMAT,
        "settings": settings.model_dump(mode="json"),
        "values_per_seed": values,
        "base_parameters": parameters,
        "share_of_base": values / parameters,
        "at_llama_3_1_8b": {"values": at_8b, "share_of_base": at_8b / LLAMA_8B["parameters"]},
        "overlap": {
            "jaccard": found,
            "chance": chance,
            "agreement": agreement,
            "needed": INFORMATIVE_AGREEMENT,
        },
        "skill": {"loss_before": before, "loss_after": list(after)},
        "informative": agreement >= INFORMATIVE_AGREEMENT and all(x < before for x in after),
        "matrices": per_matrix,
    }
