"""Uncentred second moments of what enters each matrix, and their leading directions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adapters.errors import ProbeMismatch
from adapters.examples import PaddedBatch
from adapters.probe_size import (
    FULL_SPECTRUM,
    PASS_BYTES,
    STORED_WHOLE,
    directions,
    kept_directions,
    moment_bytes,
)
from adapters.subspace import energy_rank, leading, soft_projector, spectrum

FEW_TOKENS = 1024
COMPLETE = 1e-5
VANISHING = 1e-10
SHARED_INPUT = {"up_proj": "gate_proj", "k_proj": "q_proj", "v_proj": "q_proj"}


def input_owner(name: str) -> str:
    """The matrix under whose name the inputs of `name` are kept: gate and up read the same."""
    prefix, _, kind = name.rpartition(".")
    return f"{prefix}.{SHARED_INPUT.get(kind, kind)}"


@dataclass(frozen=True, slots=True)
class Moment:
    """E[x xᵀ] over n inputs: eigenvalues from large to small, the vectors (n, k) of the first k,
    and the whole trace. There may be more values than vectors.
    """

    values: Tensor
    vectors: Tensor
    trace: float

    def basis(self, *, share: float, by: str) -> Tensor:
        """The leading directions (n, k): `share` of n (by "directions") or of the energy.

        Fewer where the inputs fill no more. `ProbeMismatch` where the probe keeps too few.
        """
        n, stored = self.vectors.shape
        if by == "directions":
            k = directions(n, share)
        else:
            k = min(energy_rank(self.energies(), share), n)
        if k > stored and float(self.values[:stored].sum()) < (1 - COMPLETE) * self.trace:
            raise ProbeMismatch(
                f"the probe keeps {stored} of {n} input directions, {k} are to be protected: "
                "lower [protection] share or fit a new probe"
            )
        return self.vectors[:, :k]

    def soft(self, strength: float) -> Tensor:
        """λ(C + λI)⁻¹ with λ = `strength` · mean eigenvalue, shape (n, n)."""
        n = self.vectors.shape[0]
        return soft_projector(self.values, self.vectors, strength * self.trace / self._sum(n))

    def energy(self, k: int) -> float:
        """Share of the energy in the first k directions."""
        return float(self.values[:k].sum()) / self.trace if self.trace else 0.0

    def _sum(self, n: int) -> float:
        total = float(self.values.sum())
        return total if total > 0.0 else float(n)

    def energies(self) -> Tensor:
        """The eigenvalues, and as a last one the energy of all that are not known."""
        rest = max(self.trace - float(self.values.sum()), 0.0)
        return torch.cat([self.values, self.values.new_tensor([rest])])


class Collector:
    """Sums x xᵀ over tokens for inputs of n features, exactly.

    In fp64 up to `FULL_SPECTRUM` features, in fp32 beyond. A wide input (n > `STORED_WHOLE`) is
    kept as its rows while these are at most `FEW_TOKENS`: they are smaller than the sum.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self.n, self.device = n, device
        self.tokens = 0
        self.trace = 0.0
        self._rows: list[Tensor] = []
        self._sum = None if n > STORED_WHOLE else self._zeros()

    def add(self, inputs: Tensor) -> None:
        """Take in rows (tokens, n)."""
        rows = inputs.float()
        self.tokens += rows.shape[0]
        self.trace += float(rows.double().square().sum())
        if self._sum is None and self.tokens <= FEW_TOKENS:
            self._rows.append(rows)
            return
        if self._sum is None:
            self._sum = self._zeros()
        for part in (*self._rows, rows):
            if self._sum.dtype == torch.float64:
                self._sum += (part.mT @ part).double()
            else:
                self._sum.addmm_(part.mT, part)
        self._rows = []

    def moment(self, kept: int | None = None) -> Moment:
        """What was gathered, divided by the number of tokens, on the CPU.

        With the vectors of the `kept` leading directions, all without it; of few tokens only the
        directions that they fill.
        """
        kept = self.n if kept is None else kept
        count = max(self.tokens, 1)
        if self._sum is None:
            values, vectors = self._of_rows()
        elif self.n <= FULL_SPECTRUM or kept == self.n:
            values, vectors = spectrum(self._sum / count)
            return Moment(values.cpu(), vectors[:, :kept].cpu(), self.trace / count)
        else:
            values, vectors = leading(self._sum, kept)
        return Moment((values / count).cpu(), vectors[:, :kept].cpu(), self.trace / count)

    def _of_rows(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and vectors of RᵀR by those of the smaller RRᵀ, of rows R (tokens, n)."""
        rows = torch.cat([torch.zeros(0, self.n, device=self.device), *self._rows]).double()
        values, left = spectrum(rows @ rows.mT)
        filled = values > VANISHING * (float(values[0]) if values.numel() else 0.0)
        values, left = values[filled], left[:, filled]
        return values, rows.mT @ (left / values.sqrt())

    def _zeros(self) -> Tensor:
        kind = torch.float64 if self.n <= FULL_SPECTRUM else torch.float32
        return torch.zeros(self.n, self.n, dtype=kind, device=self.device)


class _Gathered(Exception):
    """Every watched matrix has seen its inputs."""


@torch.no_grad()
def collect(
    model: Any, matrices: Mapping[str, nn.Linear], batches: Iterable[PaddedBatch]
) -> dict[str, Collector]:
    """Run the batches and gather the inputs of every matrix once per distinct input.

    Padding is left out: a row counts up to its last learnt token. A pass ends with the last of
    the matrices.
    """
    device = next(iter(matrices.values())).weight.device
    found = {n: Collector(m.in_features, device) for n, m in owners(matrices).items()}
    used: dict[str, Tensor] = {}
    seen: set[str] = set()

    def hook(name: str) -> Any:
        def watch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found[name].add(args[0][used["mask"]])
            seen.add(name)
            if len(seen) == len(found):
                raise _Gathered

        return watch

    handles = [matrices[name].register_forward_pre_hook(hook(name)) for name in found]
    try:
        for batch in batches:
            learnt = batch.labels != -100
            used["mask"] = learnt.flip(1).cumsum(1).flip(1) > 0
            seen.clear()
            with suppress(_Gathered):
                model.get_decoder()(input_ids=batch.ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def owners(matrices: Mapping[str, nn.Linear]) -> dict[str, nn.Linear]:
    """One matrix for every distinct input."""
    return {name: matrix for name, matrix in matrices.items() if input_owner(name) == name}


def passes(matrices: Mapping[str, nn.Linear]) -> list[dict[str, nn.Linear]]:
    """The matrices with an input of their own, in groups whose sums take at most `PASS_BYTES`.

    A single input that takes more is a group by itself.
    """
    groups: list[dict[str, nn.Linear]] = []
    room = 0
    for name, matrix in owners(matrices).items():
        size = moment_bytes(matrix.in_features)
        if not groups or size > room:
            groups.append({})
            room = PASS_BYTES
        groups[-1][name] = matrix
        room -= size
    return groups


def pack(name: str, collector: Collector, share: float) -> dict[str, Tensor]:
    """Tensors to save: a whole upper triangle when small, else `share` of the directions."""
    moment = collector.moment(kept_directions(collector.n, share))
    trace = torch.tensor([moment.trace], dtype=torch.float64)
    if collector.n <= STORED_WHOLE:
        whole = (moment.vectors * moment.values) @ moment.vectors.mT
        rows, columns = torch.triu_indices(*whole.shape)
        return {f"{name}.moment": whole[rows, columns].float(), f"{name}.trace": trace}
    return {
        f"{name}.moment_values": moment.values.float(),
        f"{name}.moment_vectors": moment.vectors.float().contiguous(),
        f"{name}.trace": trace,
    }


def unpack(name: str, n: int, tensors: Mapping[str, Tensor]) -> Moment:
    """The moment of `name` (n inputs) from saved tensors; `ProbeMismatch` when there is none.

    Vectors of wide inputs stay in fp32, in which they are orthonormal to about 1e-6.
    """
    trace = tensors.get(f"{name}.trace")
    if trace is None:
        raise ProbeMismatch(f"the probe holds no input moments of {name}: fit it again")
    upper = tensors.get(f"{name}.moment")
    if upper is None:
        values = tensors[f"{name}.moment_values"].double()
        return Moment(values, tensors[f"{name}.moment_vectors"], float(trace))
    whole = torch.zeros(n, n, dtype=torch.float64)
    rows, columns = torch.triu_indices(n, n)
    whole[rows, columns] = upper.double()
    values, vectors = spectrum(whole + whole.triu(1).mT)
    return Moment(values, vectors, float(trace))
