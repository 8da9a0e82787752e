"""Orthonormal bases and projectors: pure linear algebra.

A basis is a matrix of shape (n, k) with orthonormal columns; k may be 0. Everything that decides
about rank or energy is computed in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from adapters.probe_size import DENSE_INPUTS, search_width

LEAK_PART = 512


def empty(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The basis of the zero space in n dimensions, shape (n, 0)."""
    return torch.zeros(n, 0, dtype=dtype)


def orthonormal(vectors: Tensor, tolerance: float = 1e-10) -> Tensor:
    """Orthonormal basis (n, k') of the span of the columns of `vectors` (n, k), in float64.

    Directions whose singular value is below `tolerance` of the largest are dropped.
    """
    vectors = vectors.double()
    if vectors.shape[1] == 0 or not vectors.any():
        return empty(vectors.shape[0]).to(vectors.device)
    norms = vectors.norm(dim=0)
    left, values, _ = torch.linalg.svd(vectors / norms.clamp_min(1e-300), full_matrices=False)
    kept: Tensor = left[:, values > tolerance * values[0]]
    return kept


def join(*bases: Tensor, tolerance: float = 1e-10) -> Tensor:
    """Orthonormal basis of the sum of the spans; the bases share their n."""
    return orthonormal(torch.cat([basis.double() for basis in bases], dim=1), tolerance)


def overlap(left: Tensor, right: Tensor) -> float:
    """Mean squared cosine between two spans: 0 orthogonal, 1 when the smaller lies in the other."""
    smaller = min(left.shape[1], right.shape[1])
    if smaller == 0:
        return 0.0
    return float((left.double().mT @ right.double()).square().sum()) / smaller


def remove(rows: Tensor, basis: Tensor) -> Tensor:
    """The part of each row of `rows` (…, n) that is orthogonal to `basis` (n, k)."""
    return rows - (rows @ basis) @ basis.mT


def leak(rows: Tensor, basis: Tensor) -> float:
    """Share of the norm of `rows` (…, n) that lies in `basis` (n, k); 0 for a zero matrix."""
    exact = rows.double()
    total = float(exact.norm())
    if total == 0.0 or basis.shape[1] == 0:
        return 0.0
    # In parts: a wide basis in float64 would take twice the memory of the one that is kept.
    parts = [float((exact @ part.double()).norm()) for part in torch.split(basis, LEAK_PART, dim=1)]
    return math.hypot(*parts) / total


def spectrum(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n,) from large to small, clamped at 0, and eigenvectors (n, n) in float64."""
    symmetric = (moment.double() + moment.double().mT) / 2
    values, vectors = torch.linalg.eigh(symmetric)
    return values.flip(0).clamp_min(0.0), vectors.flip(1)


def energy_rank(values: Tensor, share: float) -> int:
    """Smallest k so that the first k of the descending `values` hold `share` of their sum."""
    total = float(values.sum())
    if total <= 0.0 or share <= 0.0:
        return 0
    reached = values.double().cumsum(0) >= share * total * (1 - 1e-12)
    return int(reached.double().argmax()) + 1 if bool(reached.any()) else values.shape[0]


def leading(moment: Tensor, k: int, rounds: int = 4) -> tuple[Tensor, Tensor]:
    """About the k largest eigenvalues (k,) in float64 and their vectors (n, k) of a PSD `moment`.

    By randomised subspace iteration (Halko, Martinsson and Tropp, 2011, algorithm 4.4) in the
    precision of `moment`: `rounds` + 2 products of (n, n) with (n, 1.1 k) instead of a complete
    decomposition. What it confuses are directions of nearly the same energy around the k-th.
    """
    n = moment.shape[0]
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(n, search_width(n, k), generator=generator)
    found = start.to(device=moment.device, dtype=moment.dtype)
    for _ in range(rounds + 1):
        found, _ = torch.linalg.qr(moment @ found)
    values, turned = spectrum(found.mT @ (moment @ found))
    return values[:k], found @ turned[:, :k].to(found.dtype)


def soft_projector(values: Tensor, vectors: Tensor, strength: float) -> Tensor:
    """P = λ(C + λI)⁻¹ in float64, λ = `strength` · mean eigenvalue (AlphaEdit's soft relative).

    `values` (k,), `vectors` (n, k); where k < n the rest of C is taken to be zero (P = I there).
    """
    n, k = vectors.shape
    scale = strength * float(values.sum()) / n
    if scale <= 0.0:
        return torch.eye(n, dtype=torch.float64, device=vectors.device)
    shrink = values.double() / (values.double() + scale)
    kept = vectors.double()
    identity = torch.eye(n, dtype=torch.float64, device=vectors.device)
    return identity - (kept * shrink[:k]) @ kept.mT


class _Removed(torch.autograd.Function):
    """`remove`, of which the backward pass keeps the basis alone, in the precision that it has."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, basis: Tensor) -> Tensor:
        ctx.save_for_backward(basis)
        return remove(rows, basis.to(rows.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (basis,) = ctx.saved_tensors
        return remove(gradient, basis.to(gradient.dtype)), None


@dataclass(frozen=True, slots=True)
class Projector:
    """A fixed linear map on row vectors of length n, in its cheapest form.

    `subtract` holds a basis Q (n, k) and maps a row x to x − (xQ)Qᵀ; `dense` holds the map M
    (n, n) itself and maps x to xM.
    """

    form: Literal["identity", "subtract", "dense"]
    matrix: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Project the rows of a matrix (…, n)."""
        if self.form == "identity":
            return rows
        if self.form == "dense":
            return rows @ self.matrix
        found: Tensor = _Removed.apply(rows, self.matrix)  # type: ignore[no-untyped-call]
        return found

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Projector:
        """The same map elsewhere."""
        return Projector(self.form, self.matrix.to(device=device, dtype=dtype))


def projector(basis: Tensor, soft: Tensor | None = None) -> Projector:
    """The map that first applies `soft` (n, n), where given, then removes `basis` (n, k).

    The hard part comes last, so that what it protects is protected exactly. Small or mostly
    protected spaces become one dense map (one product instead of two).
    """
    n, k = basis.shape
    if k == 0 and soft is None:
        return Projector("identity", basis)
    if soft is None and n > DENSE_INPUTS:
        return Projector("subtract", basis.float())
    start = (
        torch.eye(n, dtype=torch.float64, device=basis.device) if soft is None else soft.double()
    )
    return Projector("dense", remove(start, basis.double()).float())
