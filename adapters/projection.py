"""LoRA factors that cannot leave the free subspace, whatever the optimiser does.

The forward pass uses A·P_R and P_L·B: the update is P_L B A P_R. At the end the projected factors
are written into the plain LoRA weights and the variant is removed: what is saved is an ordinary
PEFT LoRA. `LoraVariant` is private to PEFT: pin its version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn

from adapters.errors import NoFreeSpace
from adapters.memory import dense_update_pays
from adapters.subspace import Projector, empty, join, leak, projector

PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Protected:
    """The protected directions of one matrix (out, in).

    An update maps the span of `inputs`, a basis (in, k), to zero and does not reach the span of
    `outputs`, a basis (out, k'); `soft` is a symmetric map (in, in) that shrinks further inputs.
    """

    inputs: Tensor
    outputs: Tensor
    soft: Tensor | None = None

    @property
    def free(self) -> int:
        """The largest rank that an update can still have."""
        return min(
            self.inputs.shape[0] - self.inputs.shape[1],
            self.outputs.shape[0] - self.outputs.shape[1],
        )

    def beside(self, rows: Tensor) -> Protected:
        """The same, and an update maps the `rows` (r, in) of an earlier adapter's A to zero too."""
        return replace(self, inputs=join(self.inputs, rows.mT.to(self.inputs.device)))

    @staticmethod
    def nothing(out_features: int, in_features: int) -> Protected:
        """No constraint at all."""
        return Protected(empty(in_features), empty(out_features))


class ProjectedVariant(LoraVariant):  # type: ignore[misc]  # peft ships no types
    """A PEFT variant whose factors pass through fixed projectors in every forward pass."""

    def __init__(self, right: Projector, left: Projector, guard: Protected) -> None:
        self.right = right
        self.left = left
        self.guard = guard
        """What the projectors were made of, in full precision."""
        self.shared: tuple[Tensor, Tensor] | None = None
        """The projected A and the projected, scaled B that forward passes share for a while."""
        self.merged = False
        """Whether the update is part of the base's weight for a while."""

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        """Nothing to prepare: the projectors are given at construction."""

    def factors(self, module: Any, name: str) -> tuple[Tensor, Tensor]:
        """The projected A (r, in) and B (out, r), in the precision of the parameters."""
        down = self.right(module.lora_A[name].weight)
        up = self.left(module.lora_B[name].weight.mT).mT
        return down, up

    def exact(self, module: Any, name: str) -> tuple[Tensor, Tensor]:
        """The same through projectors in fp32."""
        device, guard = module.lora_A[name].weight.device, self.guard
        right = projector(guard.inputs, guard.soft).to(device)
        left = projector(guard.outputs).to(device)
        return ProjectedVariant(right, left, guard).factors(module, name)

    def scaled(self, module: Any, name: str) -> tuple[Tensor, Tensor]:
        """The projected A, and the projected B times the scaling."""
        with torch.autocast(module.lora_A[name].weight.device.type, enabled=False):
            down, up = self.factors(module, name)
            return down, up * module.scaling[name]

    def forward(
        self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """`result` plus the projected update of `x`, computed in the precision of `x`."""
        if self.merged:
            return result
        down, scaled = (
            one.to(x.dtype) for one in self.shared or self.scaled(module, active_adapter)
        )
        hidden = F.linear(module.lora_dropout[active_adapter](x), down)
        # Scaling the small factor and adding within the product spares two passes over the output.
        flat = result.reshape(-1, result.shape[-1]).to(hidden.dtype)
        updated = torch.addmm(flat, hidden.reshape(-1, hidden.shape[-1]), scaled.mT)
        return updated.view(result.shape)


def lora_layers(model: nn.Module, adapter: str) -> dict[str, Any]:
    """The LoRA layers of `adapter`, by the name of the matrix in the base model."""
    return {
        name.removeprefix(PEFT_PREFIX): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_variant") and adapter in getattr(module, "lora_A", {})
    }


def check_free_space(protected: Mapping[str, Protected], rank: int) -> int:
    """The smallest free dimension of all matrices; `NoFreeSpace` when it is below `rank`."""
    if not protected:
        return rank
    tightest = min(protected, key=lambda name: protected[name].free)
    free = protected[tightest].free
    if free < rank:
        raise NoFreeSpace(
            f"{tightest} has {free} free directions, an adapter of rank {rank} needs as many: "
            "lower [protection] share or [train] rank_budget, or consolidate"
        )
    return free


def install(
    model: nn.Module, adapter: str, protected: Mapping[str, Protected], *, begun: bool = False
) -> None:
    """Constrain `adapter` to the free subspace; matrices not in `protected` stay unconstrained.

    `begun` says that its factors went through the soft projectors before (a warm start): they are
    scaled up first, and what the adapter knows does not shrink a second time.
    """
    placed: dict[tuple[object, ...], Projector] = {}
    for name, layer in lora_layers(model, adapter).items():
        guard = protected.get(name)
        if guard is None:
            guard = Protected.nothing(layer.out_features, layer.in_features)
        device = layer.lora_A[adapter].weight.device
        precision = layer.get_base_layer().weight.dtype
        # PEFT would have x in the factors' precision, twice as large, and keep it for each matrix.
        layer.cast_input_dtype_enabled = len(layer.lora_A) > 1
        if begun and guard.soft is not None:
            _undo(guard.soft, layer.lora_A[adapter].weight)
        # Gate and up have the same protected inputs: of a wide model, gigabytes that fit once.
        key = (device, guard.inputs.data_ptr(), guard.inputs.shape, id(guard.soft))
        if key not in placed:
            placed[key] = _placed(projector(guard.inputs, guard.soft), device, precision)
        left = _placed(projector(guard.outputs), device, precision)
        layer.lora_variant[adapter] = ProjectedVariant(placed[key], left, guard)


def _placed(exact: Projector, device: torch.device, precision: torch.dtype) -> Projector:
    """On the device; a wide basis in the base's precision, the map of a small space in fp32."""
    return exact.to(device, precision if exact.form == "subtract" else torch.float32)


@torch.no_grad()
def _undo(soft: Tensor, down: Tensor) -> None:
    rows = down.to(soft.device, torch.float64)
    down.copy_(torch.linalg.solve(soft.double().mT, rows.mT).mT)


class _Shared(NamedTuple):
    """What the passes of one layer share: leaf tensors that stand in for what they are made of."""

    variant: ProjectedVariant
    whole: tuple[Tensor, ...]
    leaves: tuple[Tensor, ...]
    weight: Tensor | None = None
    """The base's weight, where the one leaf is its parameter with the update added."""

    def restore(self) -> None:
        self.variant.shared, self.variant.merged = None, False
        if self.weight is not None:
            (parameter,) = self.leaves
            parameter.data = self.weight
            parameter.requires_grad_(False)
            parameter.grad = None


@contextmanager
def shared(model: nn.Module, adapter: str, tokens: int) -> Iterator[None]:
    """Within it all forward passes, of `tokens` in all, share one projection of the factors.

    What their backward passes leave there goes through the projectors once, at the end, and is
    added to the parameters' gradients; after an exception nothing is added. Where so many tokens
    make it cheaper, and the weight is in fp32, the whole update is added to the weight meanwhile.
    """
    found: list[_Shared] = []
    given = []
    for layer in lora_layers(model, adapter).values():
        variant = layer.lora_variant.get(adapter)
        if variant is None:
            continue
        down, up = variant.scaled(layer, adapter)
        if _dense(layer, adapter, tokens):
            weight, update = layer.get_base_layer().weight, up @ down
            found.append(_Shared(variant, (update,), (weight,), weight.data))
            weight.data = weight.data + update.detach()
            weight.requires_grad_(update.requires_grad)
            variant.merged = True
        else:
            leaves = tuple(one.detach().requires_grad_(one.requires_grad) for one in (down, up))
            variant.shared = leaves
            found.append(_Shared(variant, (down, up), leaves))
    try:
        yield
        given = [
            (whole, leaf.grad)
            for one in found
            for whole, leaf in zip(one.whole, one.leaves, strict=True)
            if leaf.grad is not None
        ]
    finally:
        for one in found:
            one.restore()
    if given:
        torch.autograd.backward([whole for whole, _ in given], [grad for _, grad in given])


def _dense(layer: Any, adapter: str, tokens: int) -> bool:
    """Whether the update is added to the weight for so many tokens."""
    matrix = layer.get_base_layer()
    (rank, wide), high = layer.lora_A[adapter].weight.shape, layer.lora_B[adapter].weight.shape[0]
    return (
        matrix.weight.dtype == torch.float32
        and layer.active_adapters == [adapter]
        and isinstance(layer.lora_dropout[adapter], nn.Identity)
        and dense_update_pays(tokens, rank, wide, high)
    )


@torch.no_grad()
def fold_into_weights(model: nn.Module, adapter: str) -> None:
    """Write the factors into the LoRA weights, projected in fp32, and remove the variants.

    What is saved is exactly in the free subspace, in whatever precision the bases were on the way.
    """
    for layer in lora_layers(model, adapter).values():
        variant = layer.lora_variant.pop(adapter, None)
        if variant is None:
            continue
        down, up = variant.exact(layer, adapter)
        layer.lora_A[adapter].weight.copy_(down)
        layer.lora_B[adapter].weight.copy_(up)
        layer.cast_input_dtype_enabled = True


class GradientShare:
    """Measures ‖P_L G P_R‖²/‖G‖² over all matrices, G = ∂loss/∂W, in one backward pass.

    Use as a context around forward and backward of a model on which `install` was called.
    """

    def __init__(self, model: nn.Module, adapter: str) -> None:
        self._layers = lora_layers(model, adapter)
        self._adapter = adapter
        self._handles: list[Any] = []
        self._total = 0.0
        self._kept = 0.0

    def __enter__(self) -> GradientShare:
        for layer in self._layers.values():
            self._handles.append(layer.register_forward_hook(self._watch))
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def value(self) -> float:
        """The share, 1 where nothing is protected."""
        return self._kept / self._total if self._total else 1.0

    def _watch(self, layer: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs = args[0].detach()

        def collect(gradient: Tensor) -> None:
            flat = gradient.reshape(-1, gradient.shape[-1]).float()
            full = flat.mT @ inputs.reshape(-1, inputs.shape[-1]).float()
            self._total += float(full.square().sum())
            variant = layer.lora_variant.get(self._adapter)
            kept = full if variant is None else variant.left(variant.right(full).mT)
            self._kept += float(kept.square().sum())

        output.register_hook(collect)  # type: ignore[no-untyped-call]  # torch leaves it untyped  # torch leaves it untyped


def worst_leak(
    factors: Mapping[str, tuple[Tensor, Tensor]], protected: Mapping[str, Protected]
) -> float:
    """Largest share of any saved factor's norm in its protected space (hard parts only).

    `factors` maps a matrix name to A (r, in) and B (out, r).
    """
    worst = 0.0
    for name, (down, up) in factors.items():
        guard = protected.get(name)
        if guard is not None:
            worst = max(worst, leak(down, guard.inputs.cpu()), leak(up.mT, guard.outputs.cpu()))
    return worst
