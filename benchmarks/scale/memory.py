"""What training takes of memory by part, computed from the shapes of models in use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from adapters import memory
from daemon.config.settings import Settings
from daemon.serving import gpu

SHAPES: Final = Path(__file__).parents[2] / "tests" / "support" / "shapes.json"
MODELS: Final = ("Llama 3.1 8B", "Llama 3.1 70B", "Mistral 7B v0.3", "Qwen 2.5 7B")


def run() -> dict[str, Any]:
    """GB by model and part, on a GPU at the default settings, and of its host."""
    configs = json.loads(SHAPES.read_text())
    how = gpu.training(Settings(), "cuda")
    device: dict[str, dict[str, float]] = {}
    host: dict[str, float] = {}
    for name in MODELS:
        model = memory.Model.of(configs[name])
        if model is None:
            raise ValueError(f"{SHAPES} lacks what is counted of {name}: {memory.COUNTED}")
        parts = memory.on_device(model, how)
        device[name] = {part: _gb(size) for part, size in parts.by_name.items()}
        device[name]["total"] = _gb(parts.total)
        host[name] = _gb(memory.on_host(model, how).total)
    return {"memory_gb": device, "memory_host_gb": host}


def _gb(size: int) -> float:
    return round(size / 1e9, 2)
