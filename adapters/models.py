"""Base models: loading, the matrices that adapters may touch, and a hash of what is served."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from adapters import base_config, fingerprint
from adapters.config import MLP
from adapters.errors import UnusableModel

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LAYER = re.compile(r"^(?:.*\.)?layers\.(\d+)\.(?:mlp|self_attn)\.(\w+)$")


def pick_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def base_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on CUDA, float32 on the CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def check_model_dir(model_dir: Path) -> None:
    """Raise `UnusableModel` unless the directory looks like a saved causal language model whose
    weights are not quantised."""
    if not model_dir.is_dir():
        raise UnusableModel(f"no model directory at {model_dir}: set [model] path")
    if not (model_dir / "config.json").is_file():
        raise UnusableModel(f"{model_dir} has no config.json: is it a saved transformers model?")
    if not any(model_dir.glob("*.safetensors")):
        raise UnusableModel(f"{model_dir} has no *.safetensors weights")
    if (method := base_config.quantisation(model_dir)) is not None:
        raise UnusableModel(f"{model_dir}: {base_config.refusal(method)}")


def load_base(model_dir: Path, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """The model in evaluation mode with frozen parameters, on `device`.

    Its files are mapped into memory, and go from there to a GPU one tensor after the other. Raises
    `UnusableModel` with the cause where the directory cannot be loaded.
    """
    check_model_dir(model_dir)
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            model_dir,
            dtype=dtype or base_dtype(device),
            local_files_only=True,
            device_map=None if device.type == "cpu" else {"": device},
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UnusableModel(f"{model_dir} cannot be loaded: {error}") from error
    return model.eval().requires_grad_(False)


def load_tokenizer(model_dir: Path) -> Any:
    """The tokenizer of the model directory, with a padding token."""
    check_model_dir(model_dir)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UnusableModel(f"{model_dir} has no tokenizer that can be loaded: {error}") from error
    if tokenizer.eos_token_id is None:
        raise UnusableModel(f"the tokenizer of {model_dir} has no end-of-text token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def matrices(model: nn.Module, kinds: Iterable[str] = MLP) -> dict[str, nn.Linear]:
    """The linear layers named `…layers.<i>.mlp.<kind>` or `….self_attn.<kind>`, in their order.

    Raises `UnusableModel` when a layer lacks one of `kinds`, or there is none at all.
    """
    chosen = tuple(kinds)
    found: dict[str, nn.Linear] = {}
    layers: set[str] = set()
    for name, module in model.named_modules():
        match = LAYER.match(name)
        if match and match[2] in chosen and isinstance(module, nn.Linear):
            found[name] = module
            layers.add(match[1])
    if not found:
        raise UnusableModel(
            f"no {'/'.join(chosen)} matrices in {type(model).__name__}: "
            "palorad adapts models of the shape of Llama, Mistral or Qwen"
        )
    if len(found) != len(layers) * len(chosen):
        raise UnusableModel(
            f"{type(model).__name__}: {len(found)} of the {len(layers) * len(chosen)} "
            f"{'/'.join(chosen)} matrices expected in {len(layers)} layers"
        )
    return found


def expected_shapes(model_dir: Path) -> dict[str, tuple[int, int]]:
    """Shape (out, in) of every adaptable matrix by module name, from config.json alone."""
    if not (model_dir / "config.json").is_file():
        raise UnusableModel(f"{model_dir} has no config.json: is it a saved transformers model?")
    try:
        config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise UnusableModel(f"{model_dir} cannot be read: {error}") from error
    found = matrices(model, (*MLP, *ATTENTION))
    return {name: (m.out_features, m.in_features) for name, m in found.items()}


def base_hash(model_dir: Path) -> str:
    """SHA-256 over names and bytes of weights, config and tokenizer: what a probe belongs to."""
    check_model_dir(model_dir)
    return fingerprint.model_hash(model_dir)
