"""The probe on tiny models: it covers every matrix, belongs to one base, and goes on when cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapters import models
from adapters.errors import ProbeMismatch, UnusableExamples
from adapters.probe import Probe
from adapters.probe_fit import FitProgress, fit_probe, fold_expert
from tests.support import tiny
from tests.support.fitted import FIT, SKILL, Fitted


def test_probe_covers_every_matrix_and_says_its_size(fitted: Fitted) -> None:
    card = fitted.probe.card
    assert len(fitted.probe.matrices) == 2 * 3
    assert card["values_per_seed"] == 2 * 3 * 32
    assert card["at_llama_3_1_8b"]["values"] == 393_216
    assert card["at_llama_3_1_8b"]["share_of_base"] < 0.00006
    assert card["base_parameters"] == sum(
        p.numel() for p in models.load_base(fitted.model_dir, torch.device("cpu")).parameters()
    )
    for name in fitted.probe.matrices:
        assert fitted.probe.deltas(name).shape == (3, 32)
        assert bool(fitted.probe.deltas(name).any())
    stages = {event.stage for event in fitted.events}
    assert {"decompose", "moments", "seed 0", "seed 1", "seed 2"} <= stages
    assert fitted.events[-1].seconds_left == 0


def test_probe_of_another_base_is_refused(fitted: Fitted, tmp_path: Path) -> None:
    other = tiny.build(tmp_path / "other", seed=9)
    with pytest.raises(ProbeMismatch, match="belongs to the base"):
        Probe.load(fitted.folder / "probe", models.base_hash(other))
    with pytest.raises(ProbeMismatch, match="no readable probe"):
        Probe.load(tmp_path / "nowhere", fitted.hash)


def test_probe_fit_goes_on_where_it_was_cut_off(llama: Fitted, tmp_path: Path) -> None:
    class CutOffError(Exception):
        pass

    def cut(event: FitProgress) -> None:
        if event.stage == "seed 1" and event.done == 2:
            raise CutOffError

    with pytest.raises(CutOffError):
        fit_probe(llama.model_dir, SKILL, tmp_path / "probe", FIT, cut)
    assert not (tmp_path / "probe").exists()
    stages: list[str] = []
    fitted = fit_probe(
        llama.model_dir, SKILL, tmp_path / "probe", FIT, lambda e: stages.append(e.stage)
    )
    assert "seed 0" not in stages
    assert "moments" not in stages
    for name in fitted.matrices:
        assert torch.equal(fitted.deltas(name), llama.probe.deltas(name))
    assert [p.name for p in tmp_path.iterdir()] == ["probe"]


def test_probe_needs_examples(llama: Fitted, tmp_path: Path) -> None:
    with pytest.raises(UnusableExamples, match="at least 2 examples"):
        fit_probe(llama.model_dir, SKILL[:1], tmp_path / "probe", FIT)


def test_moments_are_those_of_the_inputs(llama: Fitted) -> None:
    name = "model.layers.1.mlp.down_proj"
    moment = llama.probe.moment(name)
    rebuilt = (moment.vectors * moment.values) @ moment.vectors.mT
    assert float(rebuilt.trace()) == pytest.approx(moment.trace, rel=1e-4)
    whole = moment.basis(share=1.0, by="energy").shape[1]
    assert moment.basis(share=0.5, by="energy").shape[1] < whole <= 64
    assert moment.basis(share=0.5, by="directions").shape[1] == 32
    up, gate = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate_proj"
    assert llama.probe.moment(up) is llama.probe.moment(gate)


def test_expert_keeps_singular_vectors_and_has_its_own_probe(llama: Fitted, tmp_path: Path) -> None:
    expert = fold_expert(llama.model_dir, llama.probe, tmp_path / "expert", SKILL, FIT)
    served = models.load_base(expert, torch.device("cpu"))
    for name, matrix in models.matrices(served).items():
        weight = llama.weights()[name].double()
        left, sigma, right = torch.linalg.svd(weight, full_matrices=False)
        inner = left.mT @ matrix.weight.double() @ right.mT
        expected = sigma * (1 + llama.probe.deltas(name)[0].double())
        assert torch.allclose(inner, torch.diag(expected), atol=1e-5)
    probe = Probe.load(expert / "probe", models.base_hash(expert))
    assert probe.card["expert_of"] == llama.hash
    with pytest.raises(ProbeMismatch):
        Probe.load(expert / "probe", llama.hash)
