"""How many directions a probe keeps of each matrix, and what it takes of disk and memory.

Everything here follows from the model's shapes, so that a command can say it without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

STORED_WHOLE: Final = 1024
"""Up to so many inputs the whole moment is kept, and every share can be served from it."""
FULL_SPECTRUM: Final = 8192
"""Up to so many inputs the moment is summed in fp64 and decomposed completely."""
PASS_BYTES: Final = 4 * 2**30
"""Moments that one pass over the skill's text sums up; a wider model takes more passes."""
DENSE_INPUTS: Final = 1024
"""Up to so many dimensions a projector is one dense map (n, n), beyond them a basis."""
HALF: Final = 2
SINGLE: Final = 4
DOUBLE: Final = 8


def directions(inputs: int, share: float) -> int:
    """How many of `inputs` directions a `share` of them is: the only place that says so."""
    return round(share * inputs)


def kept_directions(inputs: int, share: float) -> int:
    """How many directions a probe fitted for `share` keeps of a matrix."""
    return inputs if inputs <= STORED_WHOLE else directions(inputs, share)


def search_width(inputs: int, kept: int) -> int:
    """How many directions the search for the `kept` leading ones follows: a tenth more."""
    return min(inputs, kept + max(16, kept // 10))


def moment_bytes(inputs: int) -> int:
    """Memory in which the moment of one input is summed up: fp64, beyond `FULL_SPECTRUM` fp32."""
    return inputs * inputs * (DOUBLE if inputs <= FULL_SPECTRUM else SINGLE)


def map_bytes(inputs: int, share: float, precision: int) -> int:
    """What a projector that removes a `share` of the directions takes where an adapter is trained.

    Wide bases are in the `precision` of the base's weights (bytes of one number).
    """
    if inputs <= DENSE_INPUTS:
        return SINGLE * inputs * inputs
    return precision * inputs * directions(inputs, share)


@dataclass(frozen=True, slots=True)
class Shapes:
    """The MLP's shapes in a model like Llama, Mistral or Qwen."""

    layers: int
    hidden: int
    intermediate: int

    @staticmethod
    def of(config: Mapping[str, Any]) -> Shapes | None:
        """The shapes in a config.json, or None where it has no such keys."""
        keys = ("num_hidden_layers", "hidden_size", "intermediate_size")
        found = [config.get(key) for key in keys]
        if not all(isinstance(value, int) and value > 0 for value in found):
            return None
        return Shapes(*found)  # type: ignore[arg-type]  # they are ints

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Shape (out, in) of the matrices of one layer."""
        wide, narrow = self.intermediate, self.hidden
        return {
            "gate_proj": (wide, narrow),
            "up_proj": (wide, narrow),
            "down_proj": (narrow, wide),
        }

    @property
    def inputs(self) -> tuple[int, int]:
        """Widths of the two inputs of one layer: that of gate and up, and that of down."""
        return self.hidden, self.intermediate

    @property
    def narrow(self) -> int:
        """Singular values of each matrix."""
        return min(self.hidden, self.intermediate)


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a probe takes. Memory is beside the model, on the device that it is on."""

    disk: int
    """The fitted probe."""
    fit_disk: int
    """The probe and what is kept beside it until it is finished."""
    fit_memory: int
    """The largest of the three stages; activations of a step are not counted."""
    train_memory: int
    """The protected directions while an adapter is trained (hard form). On a GPU they are in bf16,
    and the host holds them in fp32."""


def need(
    shapes: Shapes,
    share: float,
    *,
    svf: bool = True,
    keep_bases: bool = False,
    precision: int = 2,
) -> Need:
    """What a probe with `share` of the directions takes; `precision` is the weights' bytes.

    Without `svf` it holds the moments alone.
    """
    kept = [(n, kept_directions(n, share)) for n in shapes.inputs]
    stored = sum(
        SINGLE
        * (n * (n + 1) // 2 if n <= STORED_WHOLE else n * k + (n if n <= FULL_SPECTRUM else k))
        for n, k in kept
    )
    values = 3 * shapes.narrow * SINGLE * 4 if svf else 0  # σ and the δ of three seeds
    disk = shapes.layers * (stored + values)
    each = SINGLE if keep_bases else precision
    bases = 3 * shapes.layers * shapes.narrow**2 if svf else 0
    if keep_bases and shapes.narrow >= STORED_WHOLE:
        disk += bases * SINGLE
    gathered = shapes.layers * sum(moment_bytes(n) for n in shapes.inputs)
    summing = min(gathered, max(PASS_BYTES, *(moment_bytes(n) for n in shapes.inputs)))
    return Need(
        disk=disk,
        fit_disk=disk + (0 if keep_bases else bases * each),
        fit_memory=max(
            DOUBLE * (shapes.hidden * shapes.intermediate + 3 * shapes.narrow**2) if svf else 0,
            summing + max(_search_bytes(n, k) for n, k in kept),
            bases * precision,
        ),
        train_memory=shapes.layers * sum(map_bytes(n, share, precision) for n in shapes.inputs),
    )


def _search_bytes(inputs: int, kept: int) -> int:
    """Work space for the leading directions of one moment."""
    if inputs <= FULL_SPECTRUM:
        return 3 * DOUBLE * inputs * inputs
    return 3 * SINGLE * inputs * search_width(inputs, kept)


def shortfall(card: Mapping[str, Any], share: float) -> str | None:
    """Why a probe with this card cannot serve `share`; None where it can."""
    fitted = float(card["settings"].get("share", 0.0))
    for name, matrix in card["matrices"].items():
        n = int(matrix["inputs"])
        kept, asked = kept_directions(n, fitted), directions(n, share)
        if asked > kept:
            return (
                f"keeps {kept} of the {n} input directions of {name}, "
                f"protection.share {share:g} asks for {asked}"
            )
    return None


def crowded(shapes: Shapes, share: float, rank: int) -> str | None:
    """Why no adapter of this rank has room beside `share`; None where it has."""
    for kind, (high, wide) in shapes.matrices.items():
        free = min(wide - directions(wide, share), high)
        if free < rank:
            return f"{kind} keeps {free} free directions of {wide}, an adapter has rank {rank}"
    return None
