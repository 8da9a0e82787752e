"""What must hold of an adapter before it is served: servers accept broken ones silently."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters import lora, store
from adapters.errors import BrokenAdapter, StoreConflict
from adapters.generate import Generator, Request
from adapters.models import expected_shapes

KEY = re.compile(rf"^{re.escape(lora.KEY_PREFIX)}(?P<name>.+)\.lora_(?P<side>[AB])\.weight$")
MAX_REASONS = 20


def check_adapter(
    directory: Path,
    model_dir: Path,
    *,
    max_rank: int,
    base_name: str | None = None,
    base_hash: str | None = None,
    verify_files: bool = False,
) -> tuple[str, ...]:
    """Why the saved adapter must not be served with this base; empty when it may be.

    `base_name` and `base_hash` are compared with config and manifest where given; `verify_files`
    also compares every file with the manifest.
    """
    try:
        config, tensors = lora.read_config(directory), lora.read_tensors(directory)
    except BrokenAdapter as error:
        return error.reasons
    reasons = [
        *_manifest_reasons(directory, base_hash, verify_files),
        *_config_reasons(config, max_rank, base_name),
        *_tensor_reasons(tensors, config, expected_shapes(model_dir)),
    ]
    if len(reasons) > MAX_REASONS:
        reasons = [*reasons[:MAX_REASONS], f"and {len(reasons) - MAX_REASONS} more reasons"]
    return tuple(reasons)


def require_sound(
    directory: Path,
    model_dir: Path,
    *,
    max_rank: int,
    base_name: str | None = None,
    base_hash: str | None = None,
) -> None:
    """Raise `BrokenAdapter` with every reason unless `check_adapter` finds none."""
    reasons = check_adapter(
        directory, model_dir, max_rank=max_rank, base_name=base_name, base_hash=base_hash
    )
    if reasons:
        raise BrokenAdapter(str(directory), reasons)


def identity_probe(
    generator: Generator, adapter: str | None, prompts: Sequence[str], max_tokens: int = 16
) -> dict[str, Any]:
    """Greedy tokens and log-probabilities of `prompts` on a resident adapter and on the base.

    The server must give the adapter's tokens (eos ignored) under the revision's name, and at
    least one of them must differ from the base's: `differs` says whether that can be asked.
    """
    requests = [
        Request(generator.encode(prompt), max_tokens, ignore_eos=True, logprobs=1)
        for prompt in prompts
    ]
    served, base = generator.generate(adapter, requests), generator.generate(None, requests)
    items = [
        {
            "prompt": prompt,
            "token_ids": list(mine.token_ids),
            "logprobs": list(mine.logprobs),
            "base_token_ids": list(bare.token_ids),
            "base_logprobs": list(bare.logprobs),
        }
        for prompt, mine, bare in zip(prompts, served, base, strict=True)
    ]
    differs = any(item["token_ids"] != item["base_token_ids"] for item in items)
    return {"version": 1, "max_tokens": max_tokens, "differs": differs, "items": items}


def _manifest_reasons(directory: Path, base_hash: str | None, verify_files: bool) -> list[str]:
    reasons = list(store.verify(directory)) if verify_files else []
    if base_hash is None:
        return reasons
    try:
        stated = store.read_manifest(directory).get("base_hash")
    except StoreConflict as error:
        return [*reasons, str(error)]
    if stated != base_hash:
        reasons.append(f"made for the base {str(stated)[:12]}, this is {base_hash[:12]}")
    return reasons


def _config_reasons(config: Mapping[str, Any], max_rank: int, base_name: str | None) -> list[str]:
    reasons = []
    rank = config.get("r")
    if config.get("peft_type") != "LORA":
        reasons.append(f"peft_type is {config.get('peft_type')!r}, not 'LORA'")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        reasons.append(f"r is {rank!r}, not a positive number")
    elif rank > max_rank:
        reasons.append(f"rank {rank} is above the server's maximum {max_rank}")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        reasons.append("has bias terms, which servers refuse")
    refused = ("use_dora", "use_rslora", "modules_to_save", "rank_pattern", "alpha_pattern")
    reasons += [f"{key} is set" for key in (*refused, "fan_in_fan_out") if config.get(key)]
    stated = config.get("base_model_name_or_path")
    if base_name is not None and stated != base_name:
        reasons.append(f"names the base {stated!r}, served is {base_name!r}")
    return reasons


def _tensor_reasons(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], shapes: Mapping[str, tuple[int, int]]
) -> list[str]:
    if not tensors:
        return ["no tensors"]
    reasons = []
    sides: dict[str, set[str]] = {}
    for key, tensor in tensors.items():
        match = KEY.match(key)
        if match is None:
            reasons.append(f"{key}: not {lora.KEY_PREFIX}….lora_A.weight or ….lora_B.weight")
            continue
        name, side = match["name"], match["side"]
        sides.setdefault(name, set()).add(side)
        reasons += _one_tensor(key, tensor, side, shapes.get(name), config.get("r"))
    reasons += [
        f"{name}: lora_{'B' if found == {'A'} else 'A'} is missing"
        for name, found in sides.items()
        if len(found) == 1
    ]
    targets = config.get("target_modules")
    if isinstance(targets, list):
        untargeted = {name.rsplit(".", 1)[-1] for name in sides} - set(targets)
        reasons += [f"{kind} has tensors but is no target module" for kind in sorted(untargeted)]
        empty = set(targets) - {name.rsplit(".", 1)[-1] for name in sides}
        reasons += [f"target module {kind} has no tensors" for kind in sorted(empty)]
    ups = [t for key, t in tensors.items() if ".lora_B." in key]
    if ups and not any(bool(t.any()) for t in ups):
        reasons.append("every lora_B is zero: it would serve the bare base")
    return reasons


def _one_tensor(
    key: str, tensor: Tensor, side: str, shape: tuple[int, int] | None, rank: object
) -> list[str]:
    if shape is None:
        return [f"{key}: the base has no such matrix"]
    if tensor.ndim != 2:
        return [f"{key}: {tensor.ndim} dimensions instead of 2"]
    reasons = []
    wide, own = (1, 0) if side == "A" else (0, 1)
    expected = shape[1] if side == "A" else shape[0]
    if tensor.shape[wide] != expected:
        reasons.append(f"{key}: size {tensor.shape[wide]} where the base has {expected}")
    if tensor.shape[own] != rank:
        reasons.append(f"{key}: rank {tensor.shape[own]}, the config says {rank}")
    if not bool(torch.isfinite(tensor).all()):
        reasons.append(f"{key}: holds NaN or infinite values")
    return reasons
