"""The defaults fit real models' shapes: moments, files, protection and free space, no weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adapters import models, moment_files, moments
from adapters.examples import PaddedBatch
from adapters.probe import CARD, FORMAT, MOMENTS, TENSORS, Probe, Protection
from adapters.probe_card import ProbeConfig
from adapters.probe_size import Shapes, directions, kept_directions, need
from adapters.projection import Protected, check_free_space
from adapters.subspace import leak, projector
from daemon.config.sections import ProtectionSettings
from daemon.config.training import TrainSettings
from policies.errors import ConfigError

CONFIGS = json.loads((Path(__file__).parents[1] / "support" / "shapes.json").read_text())
RANK = TrainSettings().rank_budget
DEFAULT = Protection(**ProtectionSettings().model_dump())
BASE = "0" * 64
TOKENS = 48


class Matrix(nn.Linear):
    """A linear layer of full size without weights: it answers with zeros."""

    def __init__(self, wide: int, high: int) -> None:
        super().__init__(wide, high, bias=False, device="meta")
        self.weight = nn.Parameter(torch.zeros(1, 1).expand(high, wide), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:-1], self.out_features)


class Mlp(nn.Module):
    """An MLP as Llama, Mistral and Qwen have it, with random inputs to both of its halves."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        for kind, (high, wide) in shapes.matrices.items():
            setattr(self, kind, Matrix(wide, high))
        self.shapes = shapes

    def forward(self, ids: Tensor) -> None:
        draw = torch.Generator().manual_seed(int(ids.sum()))
        hidden, inner = (torch.randn(*ids.shape, n, generator=draw) for n in self.shapes.inputs)
        self.gate_proj(hidden), self.up_proj(hidden), self.down_proj(inner)


class OneLayer(nn.Module):
    """What `moments.collect` and `models.matrices` ask of a model, one layer deep."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"mlp": Mlp(shapes)})])

    def get_decoder(self) -> Any:
        return lambda input_ids, use_cache: self.layers[0]["mlp"](input_ids)


def batches() -> list[PaddedBatch]:
    ids = torch.arange(TOKENS).view(2, -1)
    return [PaddedBatch(ids, ids.clone())]


def write_probe(folder: Path, shapes: Shapes, small: dict[str, Tensor], share: float) -> Probe:
    """A probe's directory around the moments that `folder` holds, read back."""
    matrices = {
        f"layers.0.mlp.{kind}": {"inputs": wide, "outputs": high}
        for kind, (high, wide) in shapes.matrices.items()
    }
    save_file(small | {"layers.0.mlp.gate_proj.sigma": torch.zeros(1)}, folder / TENSORS)
    card = {"format": FORMAT, "base_hash": BASE, "settings": {"share": share}, "matrices": matrices}
    (folder / CARD).write_text(json.dumps(card))
    return Probe.load(folder, BASE)


def protections(probe: Probe, model: nn.Module) -> dict[str, Protected]:
    return {
        name: probe.protected(name, matrix.weight, DEFAULT)
        for name, matrix in models.matrices(model).items()
    }


def require_projected(guard: Protected) -> None:
    """A factor of an adapter that passes the projector has nothing in the protected directions."""
    draw = torch.Generator().manual_seed(1)
    rows = torch.randn(4, guard.inputs.shape[0], generator=draw)
    assert leak(projector(guard.inputs, guard.soft)(rows), guard.inputs) < 1e-5


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Removed at once: a test writes up to 0.7 GB."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_defaults_take_a_models_matrices_from_fit_to_protection(name: str, folder: Path) -> None:
    shapes = Shapes.of(CONFIGS[name])
    assert shapes is not None
    model = OneLayer(shapes)
    gathered = folder / "gathered"
    settings = ProbeConfig(share=DEFAULT.share)
    moment_files.gather(model, models.matrices(model), batches(), gathered, settings.share)
    small, tokens = moment_files.settle(gathered, folder / MOMENTS)
    assert tokens == TOKENS

    probe = write_probe(folder, shapes, small, settings.share)
    probe.require(DEFAULT.share)
    guards = protections(probe, model)
    assert len(guards) == 3
    for guard in guards.values():
        assert guard.inputs.shape[1] == TOKENS  # few tokens fill no more directions
        require_projected(guard)
    assert check_free_space(guards, RANK) >= RANK
    with pytest.raises(ConfigError, match=r"protection\.share 0\.9 asks for"):
        probe.require(0.9)


@pytest.mark.parametrize("name", ["Llama 3.1 8B", "Llama 3.1 70B", "Qwen 2.5 7B"])
def test_a_probe_with_all_of_its_directions_is_stored_and_protected(
    name: str, folder: Path
) -> None:
    """With as many directions as real text fills: of coordinates, which need no decomposition."""
    shapes = Shapes.of(CONFIGS[name])
    assert shapes is not None
    model, share = OneLayer(shapes), ProbeConfig().share
    (folder / MOMENTS).mkdir()
    for owner, matrix in moments.owners(models.matrices(model)).items():
        moment_files.save(
            folder / MOMENTS / f"{owner}.safetensors", full(owner, matrix.in_features, share)
        )
    probe = write_probe(folder, shapes, {}, share)
    guards = protections(probe, model)
    for guard in guards.values():
        n = guard.inputs.shape[0]
        assert guard.inputs.shape[1] == directions(n, share) == kept_directions(n, share)
        require_projected(guard)
    gate, up = guards["layers.0.mlp.gate_proj"], guards["layers.0.mlp.up_proj"]
    assert gate.inputs.data_ptr() == up.inputs.data_ptr(), "the same input is kept twice"
    assert check_free_space(guards, RANK) == shapes.hidden - directions(shapes.hidden, share)
    stored = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    assert stored * shapes.layers == pytest.approx(need(shapes, share).disk, rel=0.01)


def full(owner: str, n: int, share: float) -> dict[str, Tensor]:
    """The tensors of a moment with more energy than in the directions that are kept."""
    k = kept_directions(n, share)
    vectors = torch.zeros(n, k)
    vectors[torch.randperm(n, generator=torch.Generator().manual_seed(n))[:k], torch.arange(k)] = 1
    values = torch.linspace(2, 1, k)
    trace = torch.tensor([2.0 * float(values.sum())], dtype=torch.float64)
    keys = (f"{owner}.moment_values", f"{owner}.moment_vectors", f"{owner}.trace")
    return dict(zip(keys, (values, vectors, trace), strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_probe_takes_is_bounded(name: str) -> None:
    """A tenth of the weights' size on disk for each fifth of the directions, one pass's moments."""
    shapes = Shapes.of(CONFIGS[name])
    assert shapes is not None
    mlp = 2 * 3 * shapes.layers * shapes.hidden * shapes.intermediate
    taken = need(shapes, DEFAULT.share)
    assert taken.disk < mlp
    assert taken.train_memory < mlp
    assert taken.fit_memory < mlp
    assert all(
        sum(moments.moment_bytes(m.in_features) for m in group.values()) <= moments.PASS_BYTES
        for group in moments.passes(models.matrices(OneLayer(shapes)))
    )


def test_the_documented_sizes_are_those_of_the_shapes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "probe.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| ") and "GB" in line
    ]
    documented = {model: cells for names, *cells in rows for model in names.split(", ")}
    for name, config in CONFIGS.items():
        shapes = Shapes.of(config)
        assert shapes is not None
        taken = need(shapes, DEFAULT.share)
        sizes = (taken.disk, taken.fit_disk, taken.fit_memory, taken.train_memory)
        for size, cell in zip(sizes, documented[name.removesuffix(" v0.3")], strict=True):
            digits = 1 if size < 20e9 else 0
            assert cell == f"{size / 1e9:.{digits}f} GB", name
