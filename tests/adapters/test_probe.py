"""The probe on tiny models: it covers every matrix, belongs to one base, and goes on when cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapters import models, moments
from adapters.errors import ProbeMismatch, UnusableExamples
from adapters.probe import MOMENTS, Probe, Protection
from adapters.probe_fit import FitProgress, fit_probe, fold_expert
from adapters.probe_size import Shapes, need
from adapters.projection import check_free_space
from adapters.subspace import overlap
from policies.errors import ConfigError
from tests.support import tiny
from tests.support.fitted import FIT, SKILL, Fitted

CPU = torch.device("cpu")


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


def test_moments_alone_protect_as_those_of_a_whole_fit(llama: Fitted, tmp_path: Path) -> None:
    alone = FIT.model_copy(update={"seeds": ()})
    stages: set[str] = set()
    found = fit_probe(
        llama.model_dir, SKILL, tmp_path / "probe", alone, lambda e: stages.add(e.stage)
    )
    assert stages == {"moments"}
    for name, weight in llama.weights().items():
        guards = [one.protected(name, weight, Protection()) for one in (found, llama.probe)]
        assert torch.equal(guards[0].inputs, guards[1].inputs)
    found.require(FIT.share)
    with pytest.raises(ConfigError, match="holds moments alone"):
        found.require(FIT.share, svf=True)
    with pytest.raises(ConfigError, match="remove this directory"):
        fit_probe(llama.model_dir, SKILL, tmp_path / "probe", FIT)
    assert fit_probe(llama.model_dir, SKILL, llama.folder / "probe", alone).has_svf


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


WIDE = 1100
DOWN = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def wide_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with more inputs than a probe keeps whole."""
    return tiny.build(tmp_path_factory.mktemp("wide") / "base", intermediate=WIDE)


@pytest.mark.parametrize("few_tokens", [0, 1024])
def test_a_wide_model_is_protected_as_if_everything_were_kept(
    few_tokens: int, wide_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.moments.FEW_TOKENS", few_tokens)
    kept = fit_probe(wide_dir, SKILL, tmp_path / "kept", FIT)
    assert len(list((kept.directory / MOMENTS).iterdir())) == 2
    for module in ("moments", "probe_size"):
        monkeypatch.setattr(f"adapters.{module}.STORED_WHOLE", WIDE)
    whole = fit_probe(wide_dir, SKILL, tmp_path / "whole", FIT.model_copy(update={"steps": 3}))
    assert not (whole.directory / MOMENTS).exists()
    model = models.load_base(wide_dir, torch.device("cpu"))
    few = Protection(share=0.01)
    guards = {}
    for name, matrix in models.matrices(model).items():
        guards[name] = kept.protected(name, matrix.weight, Protection())
        if name.endswith("down_proj"):
            short = kept.protected(name, matrix.weight, few).inputs
            exact = whole.protected(name, matrix.weight, few).inputs
            assert short.shape == exact.shape == (WIDE, 11)
            assert overlap(short, exact) == pytest.approx(1.0, abs=1e-4)
    assert check_free_space(guards, 16) >= 16


def test_disk_is_what_was_foretold(wide_dir: Path, tmp_path: Path) -> None:
    found = fit_probe(wide_dir, SKILL * 40, tmp_path / "probe", FIT)
    assert found.moment(DOWN).vectors.shape == (WIDE, WIDE // 5)
    size = sum(path.stat().st_size for path in found.directory.rglob("*.safetensors"))
    expected = need(Shapes(layers=2, hidden=32, intermediate=WIDE), FIT.share)
    assert size == pytest.approx(expected.disk, rel=0.02)


def test_a_probe_that_keeps_too_few_directions_is_refused_before_training(
    wide_dir: Path, tmp_path: Path
) -> None:
    fit_probe(wide_dir, SKILL, tmp_path / "probe", FIT)
    more = FIT.model_copy(update={"share": 0.5})
    line = r"keeps 220 of the 1100 input .*protection\.share 0\.5 asks for 550"
    with pytest.raises(ConfigError, match=line):
        fit_probe(wide_dir, SKILL, tmp_path / "probe", more)
    less = FIT.model_copy(update={"share": 0.1})
    assert fit_probe(wide_dir, SKILL, tmp_path / "probe", less).card["settings"]["share"] == 0.2


def test_a_probe_without_its_moments_names_the_file(wide_dir: Path, tmp_path: Path) -> None:
    found = fit_probe(wide_dir, SKILL, tmp_path / "probe", FIT)
    (found.directory / MOMENTS / f"{DOWN}.safetensors").write_bytes(b"torn")
    torn = Probe.load(found.directory, models.base_hash(wide_dir))
    with pytest.raises(ProbeMismatch, match=f"{DOWN}.safetensors cannot be read"):
        torn.moment(DOWN)


def test_moments_in_several_passes_are_those_of_one(
    llama: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a fit that is interrupted between two passes does not repeat the first."""

    class CutOffError(Exception):
        pass

    def cut(event: FitProgress) -> None:
        seen.append((event.stage, event.done, event.total))
        if seen[-1][0] == "moments" and event.done > 0:
            raise CutOffError

    monkeypatch.setattr("adapters.moments.PASS_BYTES", 1)
    assert len(moments.passes(models.matrices(models.load_base(llama.model_dir, CPU)))) == 4
    seen: list[tuple[str, int, int]] = []
    with pytest.raises(CutOffError):
        fit_probe(llama.model_dir, SKILL, tmp_path / "probe", FIT, cut)
    one_pass = seen[-1][2] // 4
    rest: list[FitProgress] = []
    found = fit_probe(llama.model_dir, SKILL, tmp_path / "probe", FIT, rest.append)
    assert next(e.total for e in rest if e.stage == "moments") == 3 * one_pass
    for name in found.matrices:
        assert torch.equal(found.moment(name).values, llama.probe.moment(name).values)
