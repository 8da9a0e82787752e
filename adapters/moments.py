"""Uncentred second moments of what enters each matrix, exact or as a low-rank sketch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adapters.errors import ProbeMismatch
from adapters.examples import Batch
from adapters.subspace import energy_rank, soft_projector, spectrum

EXACT_LIMIT = 8192
STORED_WHOLE = 1024
SHARED_INPUT = {"up_proj": "gate_proj", "k_proj": "q_proj", "v_proj": "q_proj"}


def input_owner(name: str) -> str:
    """The matrix under whose name the inputs of `name` are kept: gate and up read the same."""
    prefix, _, kind = name.rpartition(".")
    return f"{prefix}.{SHARED_INPUT.get(kind, kind)}"


@dataclass(frozen=True, slots=True)
class Moment:
    """Eigenvalues (k,) from large to small and vectors (n, k) of E[x xᵀ], and its whole trace."""

    values: Tensor
    vectors: Tensor
    trace: float

    def basis(self, *, share: float, by: str) -> Tensor:
        """The leading directions (n, k): `share` of n (by "directions") or of the energy."""
        n, stored = self.vectors.shape
        if by == "directions":
            k = round(share * n)
        else:
            k = min(energy_rank(torch.cat([self.values, self._rest()]), share), n)
        if k > stored:
            raise ProbeMismatch(
                f"the probe keeps {stored} of {n} input directions, {k} are to be protected: "
                "fit it again with a larger moment_rank"
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

    def _rest(self) -> Tensor:
        return self.values.new_tensor([max(self.trace - float(self.values.sum()), 0.0)])


class Collector:
    """Sums x xᵀ over tokens for inputs of n features.

    Up to `EXACT_LIMIT` features exactly in float64; beyond it as a Frequent Directions sketch
    (Liberty, 2013) of `rank` rows, whose error is at most the energy outside rank/2 directions.
    """

    def __init__(self, n: int, rank: int, device: torch.device) -> None:
        self.n, self.rank = n, min(rank, n)
        self.exact = n <= EXACT_LIMIT
        rows = n if self.exact else 2 * self.rank
        kind = torch.float64 if self.exact else torch.float32
        self._sum = torch.zeros(rows, n, dtype=kind, device=device)
        self._filled = 0
        self.tokens = 0
        self.trace = 0.0

    def add(self, inputs: Tensor) -> None:
        """Take in rows (tokens, n)."""
        rows = inputs.float()
        self.tokens += rows.shape[0]
        self.trace += float(rows.double().square().sum())
        if self.exact:
            self._sum += (rows.mT @ rows).double()
            return
        for part in torch.split(rows, self.rank):
            if self._filled + part.shape[0] > 2 * self.rank:
                self._shrink()
            self._sum[self._filled : self._filled + part.shape[0]] = part
            self._filled += part.shape[0]

    def moment(self) -> Moment:
        """What was gathered, divided by the number of tokens."""
        count = max(self.tokens, 1)
        if self.exact:
            values, vectors = spectrum(self._sum / count)
            return Moment(values.cpu(), vectors.cpu(), self.trace / count)
        self._shrink()
        _, singular, right = torch.linalg.svd(self._sum[: self.rank], full_matrices=False)
        values = (singular.double().square() / count).cpu()
        return Moment(values, right.mT.double().cpu(), self.trace / count)

    def _shrink(self) -> None:
        _, singular, right = torch.linalg.svd(self._sum[: self._filled], full_matrices=False)
        cut = singular[self.rank].square() if singular.numel() > self.rank else 0.0
        kept = (singular[: self.rank].square() - cut).clamp_min(0.0).sqrt()
        self._sum.zero_()
        self._sum[: kept.numel()] = kept[:, None] * right[: kept.numel()]
        self._filled = kept.numel()


@torch.no_grad()
def collect(
    model: Any, matrices: Mapping[str, nn.Linear], batches: Iterable[Batch], rank: int
) -> dict[str, Collector]:
    """Run the batches and gather the inputs of every matrix once per distinct input.

    Padding is left out: a row counts up to its last learnt token.
    """
    owners = {name: m for name, m in matrices.items() if input_owner(name) == name}
    device = next(iter(matrices.values())).weight.device
    found = {name: Collector(m.in_features, rank, device) for name, m in owners.items()}
    used: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def watch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found[name].add(args[0][used["mask"]])

        return watch

    handles = [m.register_forward_pre_hook(hook(name)) for name, m in owners.items()]
    try:
        for batch in batches:
            learnt = batch.labels != -100
            used["mask"] = learnt.flip(1).cumsum(1).flip(1) > 0
            model.get_decoder()(input_ids=batch.ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def pack(name: str, collector: Collector, rank: int) -> dict[str, Tensor]:
    """Tensors to save: a whole upper triangle when small, else `rank` leading eigenvectors."""
    moment = collector.moment()
    trace = torch.tensor([moment.trace], dtype=torch.float64)
    if moment.vectors.shape[0] <= STORED_WHOLE and collector.exact:
        whole = (moment.vectors * moment.values) @ moment.vectors.mT
        rows, columns = torch.triu_indices(*whole.shape)
        return {f"{name}.moment": whole[rows, columns].float(), f"{name}.trace": trace}
    return {
        f"{name}.moment_values": moment.values.float(),
        f"{name}.moment_vectors": moment.vectors[:, :rank].float().contiguous(),
        f"{name}.trace": trace,
    }


def unpack(name: str, n: int, tensors: Mapping[str, Tensor]) -> Moment:
    """The moment of `name` (n inputs) from saved tensors; `ProbeMismatch` when there is none."""
    trace = tensors.get(f"{name}.trace")
    if trace is None:
        raise ProbeMismatch(f"the probe holds no input moments of {name}: fit it again")
    upper = tensors.get(f"{name}.moment")
    if upper is None:
        vectors, _ = torch.linalg.qr(tensors[f"{name}.moment_vectors"].double())
        values = tensors[f"{name}.moment_values"].double()
        return Moment(values, vectors, float(trace))
    whole = torch.zeros(n, n, dtype=torch.float64)
    rows, columns = torch.triu_indices(n, n)
    whole[rows, columns] = upper.double()
    values, vectors = spectrum(whole + whole.triu(1).mT)
    return Moment(values, vectors, float(trace))
