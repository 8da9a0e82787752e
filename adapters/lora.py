"""Plain PEFT LoRA directories as tensors: read, write, and their update ΔW."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.errors import BrokenAdapter

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
KEY_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Lora:
    """One adapter: factors A (r, in) and B (out, r) by matrix name; ΔW = scaling · B A."""

    factors: Mapping[str, tuple[Tensor, Tensor]]
    scaling: Mapping[str, float]

    @property
    def rank(self) -> int:
        """The largest rank of any matrix."""
        return max((down.shape[0] for down, _ in self.factors.values()), default=0)

    def delta(self, name: str) -> Tensor:
        """ΔW (out, in) of one matrix, in float64."""
        down, up = self.factors[name]
        return self.scaling[name] * (up.double() @ down.double())

    def norm(self) -> float:
        """‖ΔW‖ over all matrices (Frobenius), without forming any ΔW."""
        total = 0.0
        for name, (down, up) in self.factors.items():
            gram = (up.double().mT @ up.double()) * (down.double() @ down.double().mT)
            total += self.scaling[name] ** 2 * float(gram.sum())
        return float(max(total, 0.0) ** 0.5)


def beyond(initial: Lora, adapter: Lora) -> Lora:
    """What `adapter` adds to the weights that were relieved of `initial` before it was trained.

    Both side by side, one negative: twice the rank.
    """
    factors = {}
    for name, (down, up) in adapter.factors.items():
        first_down, first_up = initial.factors[name]
        ratio = initial.scaling[name] / adapter.scaling[name]
        factors[name] = (torch.cat([down, first_down]), torch.cat([up, -ratio * first_up], dim=1))
    return Lora(factors, adapter.scaling)


def read_config(directory: Path) -> dict[str, Any]:
    """`adapter_config.json` as a dictionary; `BrokenAdapter` where there is none."""
    path = directory / CONFIG
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise BrokenAdapter(str(directory), (f"no {CONFIG}",)) from None
    except (OSError, ValueError) as error:
        raise BrokenAdapter(str(directory), (f"{CONFIG} cannot be read: {error}",)) from error
    if not isinstance(config, dict):
        raise BrokenAdapter(str(directory), (f"{CONFIG} is no JSON object",))
    return config


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """The saved tensors as they are; `BrokenAdapter` where they cannot be read."""
    path = directory / WEIGHTS
    if not path.is_file():
        raise BrokenAdapter(str(directory), (f"no {WEIGHTS}",))
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BrokenAdapter(str(directory), (f"{WEIGHTS} cannot be read: {error}",)) from error


def read(directory: Path) -> Lora:
    """Load a plain LoRA directory in fp32, with the scaling that its config states."""
    config, tensors = read_config(directory), read_tensors(directory)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    scaling: dict[str, float] = {}
    for key, down in tensors.items():
        if not key.endswith(".lora_A.weight"):
            continue
        up = tensors.get(key.replace(".lora_A.", ".lora_B."))
        if up is None:
            raise BrokenAdapter(str(directory), (f"{key} has no lora_B beside it",))
        name = key.removeprefix(KEY_PREFIX).removesuffix(".lora_A.weight")
        factors[name] = (down.float(), up.float())
        scaling[name] = _scaling(config, name, down.shape[0])
    if not factors:
        raise BrokenAdapter(str(directory), ("no LoRA tensors",))
    return Lora(factors, scaling)


def _scaling(config: Mapping[str, Any], name: str, rank: int) -> float:
    alpha = float((config.get("alpha_pattern") or {}).get(name, config.get("lora_alpha", rank)))
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def write(directory: Path, lora: Lora, base_name: str) -> None:
    """Write a plain PEFT LoRA in fp32 whose scaling is 1 (`lora_alpha == r`), folded into B.

    All matrices get the same rank: shorter ones are padded with zero rows, which change nothing
    and let every server treat them alike.
    """
    rank = lora.rank
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in lora.factors.items():
        missing = rank - down.shape[0]
        padded_down = torch.nn.functional.pad(down.float(), (0, 0, 0, missing))
        padded_up = torch.nn.functional.pad(up.float() * lora.scaling[name], (0, missing))
        tensors[f"{KEY_PREFIX}{name}.lora_A.weight"] = padded_down.contiguous()
        tensors[f"{KEY_PREFIX}{name}.lora_B.weight"] = padded_up.contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in lora.factors}),
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
