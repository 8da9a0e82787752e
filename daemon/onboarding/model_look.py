"""What a checkpoint says of itself, without loading it."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from adapters import base_config, probe_size
from daemon.config.sections import LORA_RANKS
from daemon.gate.suites import has_chat_template
from policies.errors import PaloradError
from policies.records import Record

_GATE: Final = "mlp.gate_proj.weight"
USUAL_RANK: Final = 128


class UnfitModel(PaloradError, ValueError):
    """A checkpoint that palorad cannot serve or adapt: what, where, what to do."""


class ModelLook(Record):
    """The shape of a model; `rank` is the largest rank budget that has room beside the probe."""

    path: Path
    architecture: str
    layers: int
    hidden: int
    intermediate: int
    parameters: int
    bytes: int
    dtype: str
    context: int | None
    chat: bool
    rank: int

    def lines(self) -> tuple[str, ...]:
        """The same for people."""
        size = f"{self.parameters / 1e9:.2f}" if self.parameters >= 1e8 else None
        count = f"{size} billion" if size else f"{self.parameters / 1e6:.1f} million"
        room = f", context {self.context}" if self.context else ""
        return (
            f"{self.architecture}, {count} parameters, {self.dtype}, {self.bytes / 1e9:.2f} GB",
            f"{self.layers} layers, {self.hidden} wide, MLP {self.intermediate} wide{room}",
            "has a chat template: it is asked as a chat"
            if self.chat
            else "has no chat template: it is asked in plain text",
        )


def look(path: Path, share: float) -> ModelLook:
    """The model in a directory, where `share` of its directions are protected.

    Raises `UnfitModel` where palorad could not adapt it.
    """
    config = _config(path)
    shapes = probe_size.Shapes.of(config)
    if not any(path.glob("*.safetensors")):
        raise UnfitModel(f"{path}: there are no *.safetensors weights; convert the model to these")
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise UnfitModel(f"{path}: there is no tokenizer; copy it there from the same model")
    tensors = [one for file in sorted(path.glob("*.safetensors")) for one in _tensors(file)]
    if shapes is None or not any(name.endswith(_GATE) for name, _, _ in tensors):
        raise UnfitModel(
            f"{path}: palorad adapts models of the shape of Llama, Mistral or Qwen, and this one "
            f"({_architecture(config)}) is none; choose another"
        )
    if (method := base_config.quantisation(path)) is not None:
        raise UnfitModel(f"{path}: {base_config.refusal(method)}")
    ranks = [
        r for r in LORA_RANKS if r <= USUAL_RANK and probe_size.crowded(shapes, share, r) is None
    ]
    if not ranks:
        raise UnfitModel(f"{path}: it is too narrow for any adapter ({shapes.hidden} wide)")
    return ModelLook(
        path=path,
        architecture=_architecture(config),
        layers=shapes.layers,
        hidden=shapes.hidden,
        intermediate=shapes.intermediate,
        parameters=sum(math.prod(shape) for _, _, shape in tensors),
        bytes=sum(file.stat().st_size for file in path.glob("*.safetensors")),
        dtype=", ".join(sorted({dtype for _, dtype, _ in tensors})),
        context=config.get("max_position_embeddings"),
        chat=has_chat_template(path),
        rank=max(ranks),
    )


def _config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnfitModel(
            f"{path}: there is no config.json; name the directory of a saved transformers model"
        ) from None
    except (OSError, ValueError) as error:
        raise UnfitModel(f"{path}/config.json: cannot be read: {error}") from None
    return config if isinstance(config, dict) else {}


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures") or [config.get("model_type", "an unknown kind")]
    return str(named[0])


def _tensors(file: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Name, type and shape of each tensor: a safetensors file begins with its table as JSON."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            table = json.loads(stream.read(length))
        for name, one in table.items():
            if name != "__metadata__":
                yield name, str(one["dtype"]), list(one["shape"])
    except (OSError, ValueError, struct.error, KeyError, TypeError, OverflowError) as error:
        raise UnfitModel(f"{file}: is no safetensors file: {error}") from None
