"""What a model's config.json says of its weights, without torch."""

from __future__ import annotations

import json
from pathlib import Path


def quantisation(model_dir: Path) -> str | None:
    """How the weights in a directory are quantised, such as "fp8" or "awq"; None if they are not,
    or where there is no config.json to say it.
    """
    try:
        config = json.loads((model_dir / "config.json").read_text())
    except (OSError, ValueError):
        return None
    found = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(found, dict):
        return None
    return str(found.get("quant_method") or found.get("quant_algo") or "a method of its own")


def refusal(method: str) -> str:
    """Why weights that are quantised so cannot be adapted, and what can."""
    return (
        f"its weights are quantised ({method}), and an adapter is trained on unquantised ones: "
        "name the model that they were made of; vLLM quantises that as it loads it, by "
        'server.extra_args = ["--quantization", "fp8"]'
    )
