"""A lineage of adapters becomes one servable LoRA by exact rank concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from adapters import lora
from adapters.errors import BrokenAdapter
from adapters.lora import Lora

SERVABLE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def concatenate(adapters: Sequence[Lora]) -> Lora:
    """One adapter whose ΔW is the sum of all of them: A stacked, B side by side with its scaling.

    Every part has full weight (no rsLoRA, no division by a common rank), so the sum is exact up
    to the rounding of fp32.
    """
    names = sorted({name for adapter in adapters for name in adapter.factors})
    factors = {}
    for name in names:
        parts = [adapter for adapter in adapters if name in adapter.factors]
        factors[name] = (
            torch.cat([part.factors[name][0].float() for part in parts], dim=0),
            torch.cat(
                [part.factors[name][1].float() * part.scaling[name] for part in parts], dim=1
            ),
        )
    return Lora(factors, dict.fromkeys(names, 1.0))


def padded(adapter: Lora, rank: int) -> Lora:
    """The same update written at a larger `rank`, with zero rows and columns."""
    factors = {}
    for name, (down, up) in adapter.factors.items():
        missing = rank - down.shape[0]
        if missing < 0:
            raise ValueError(f"{name} has rank {down.shape[0]}, more than {rank}")
        factors[name] = (
            torch.nn.functional.pad(down, (0, 0, 0, missing)),
            torch.nn.functional.pad(up * adapter.scaling[name], (0, missing)),
        )
    return Lora(factors, dict.fromkeys(factors, 1.0))


def truncated(adapter: Lora, name: str, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest update of one matrix of at most `rank`: A (r, in) and B (out, r), ΔW = B A.

    Both hold the root of every singular value; those that are nought are left out.
    """
    down, up = (factor.double() for factor in adapter.factors[name])
    left, upper = torch.linalg.qr(up * adapter.scaling[name])
    right, lower = torch.linalg.qr(down.mT)
    u, sigma, v = torch.linalg.svd(upper @ lower.mT)
    kept = min(rank, int((sigma > sigma[0] * 1e-7).sum()))
    root = sigma[:kept].sqrt()
    return (root[:, None] * (v[:kept] @ right.mT)).float(), (left @ u[:, :kept] * root).float()


def compose(lineage: Sequence[Path], out: Path, base_name: str, pad_to: int | None = None) -> int:
    """Write the sum of the adapters in `lineage` to `out` as a plain LoRA; return its rank.

    `base_name` is what the config names as its base. Raises `BrokenAdapter` for a part that
    cannot be read.
    """
    if not lineage:
        raise BrokenAdapter(str(out), ("a lineage without adapters is the base itself",))
    composed = concatenate([lora.read(directory) for directory in lineage])
    if pad_to is not None:
        composed = padded(composed, pad_to)
    lora.write(out, composed, base_name)
    return composed.rank
