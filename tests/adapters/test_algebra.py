"""Bases, projectors and rank concatenation, as properties."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor

from adapters import lora, models, svf
from adapters.compose import compose, concatenate, padded, truncated
from adapters.errors import BrokenAdapter, NoFreeSpace
from adapters.lora import Lora
from adapters.moments import Collector
from adapters.probe import component_spaces
from adapters.projection import Protected, check_free_space
from adapters.subspace import (
    energy_rank,
    join,
    leading,
    leak,
    orthonormal,
    overlap,
    projector,
    remove,
    soft_projector,
    spectrum,
)
from tests.support import tiny

FEW = settings(max_examples=40, deadline=None)
sizes = st.tuples(st.integers(2, 40), st.integers(0, 45), st.integers(0, 2**31))


def random(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


@FEW
@given(sizes)
def test_orthonormal_spans_the_same_space(size: tuple[int, int, int]) -> None:
    n, k, seed = size
    vectors = random(n, k, seed)
    basis = orthonormal(vectors)
    assert basis.shape[1] == min(n, k)
    assert torch.allclose(basis.mT @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
    assert torch.allclose(remove(vectors.mT, basis), torch.zeros_like(vectors.mT), atol=1e-9)


@FEW
@given(sizes, st.integers(0, 20))
def test_free_dimension_is_what_joined_bases_leave(size: tuple[int, int, int], more: int) -> None:
    n, k, seed = size
    first, second = orthonormal(random(n, k, seed)), orthonormal(random(n, more, seed + 1))
    both = join(first, second)
    assert both.shape == (n, min(n, first.shape[1] + second.shape[1]))
    assert join(both, first).shape == both.shape


def test_dependent_and_zero_vectors_are_dropped() -> None:
    vectors = random(9, 3, 0)
    doubled = torch.cat([vectors, vectors @ random(3, 2, 1), torch.zeros(9, 1).double()], dim=1)
    assert orthonormal(doubled).shape == (9, 3)
    assert orthonormal(torch.zeros(5, 4)).shape == (5, 0)
    assert orthonormal(torch.zeros(5, 0)).shape == (5, 0)


@FEW
@given(sizes, st.booleans())
def test_projector_removes_the_hard_part_exactly(
    size: tuple[int, int, int], with_soft: bool
) -> None:
    n, k, seed = size
    basis = orthonormal(random(n, min(k, n - 1), seed))
    values, vectors = spectrum(random(n, n, seed + 2) @ random(n, n, seed + 2).mT)
    soft = soft_projector(values, vectors, 0.01) if with_soft else None
    rows = random(5, n, seed + 1).float()
    once = projector(basis, soft)(rows)
    assert leak(once, basis) < 1e-5
    if not with_soft:
        assert torch.allclose(projector(basis)(once), once, atol=1e-5)
        assert torch.allclose(once, remove(rows, basis.float()), atol=1e-5)


def test_large_spaces_subtract_instead_of_a_dense_map() -> None:
    basis = orthonormal(random(1100, 4, 0))
    assert projector(basis).form == "subtract"
    rows = random(3, 1100, 1).float()
    assert leak(projector(basis)(rows), basis) < 1e-5


@FEW
@given(st.integers(2, 30), st.floats(0.05, 1.0), st.integers(0, 2**31))
def test_energy_basis_is_the_smallest_that_reaches_its_share(
    n: int, share: float, seed: int
) -> None:
    factor = random(n, n, seed)
    moment = factor @ factor.mT
    values, vectors = spectrum(moment)
    basis = vectors[:, : energy_rank(values, share)]
    held = float((basis.mT @ moment @ basis).trace() / moment.trace())
    assert held >= share - 1e-9
    k = basis.shape[1]
    fewer = vectors[:, : k - 1]
    assert k == 1 or float((fewer.mT @ moment @ fewer).trace() / moment.trace()) < share


def test_energy_of_nothing_needs_no_direction() -> None:
    assert energy_rank(torch.zeros(4), 0.9) == 0
    assert energy_rank(spectrum(torch.zeros(4, 4))[0], 0.9) == 0


def test_soft_projector_is_its_formula() -> None:
    factor = random(8, 8, 3)
    moment = factor @ factor.mT
    values, vectors = spectrum(moment)
    rate = 0.1 * float(moment.trace()) / 8
    expected = rate * torch.linalg.inv(moment + rate * torch.eye(8))
    assert torch.allclose(soft_projector(values, vectors, 0.1), expected, atol=1e-10)


def test_free_space_is_checked_with_the_tightest_matrix() -> None:
    guards = {
        "roomy": Protected(orthonormal(random(20, 3, 0)), orthonormal(random(30, 4, 1))),
        "tight": Protected(orthonormal(random(20, 3, 0)), orthonormal(random(9, 4, 1))),
    }
    assert check_free_space(guards, 5) == 5
    with pytest.raises(NoFreeSpace, match="tight has 5 free directions"):
        check_free_space(guards, 6)
    assert check_free_space({}, 8) == 8


@pytest.mark.parametrize("shape", [(24, 10), (10, 24), (10, 10)])
def test_critical_components_are_singular_pairs(shape: tuple[int, int]) -> None:
    weight = random(*shape, 5)
    sigma, narrow = svf.decompose(weight)
    assert torch.allclose(sigma, torch.linalg.svdvals(weight), atol=1e-8)
    chosen = torch.tensor([0, 3, 7])
    inputs, outputs = component_spaces(weight, narrow, chosen)
    left, _, right = torch.linalg.svd(weight, full_matrices=False)
    assert overlap(inputs, right.mT[:, chosen]) == pytest.approx(1.0)
    assert overlap(outputs, left[:, chosen]) == pytest.approx(1.0)


def test_agreement_against_chance() -> None:
    chosen = torch.zeros(2, 100, dtype=torch.bool)
    chosen[:, :25] = True
    overlapping, chance = svf.agreement(chosen)
    assert overlapping == 1.0
    assert chance == pytest.approx(25 * 25 / 100 / (50 - 6.25))
    generator = torch.Generator().manual_seed(0)
    random_sets = torch.stack([torch.randperm(400, generator=generator).lt(100) for _ in range(40)])
    overlapping, chance = svf.agreement(random_sets)
    assert overlapping == pytest.approx(chance, abs=0.01)


def test_score_selects_the_energy_of_the_update() -> None:
    sigma = torch.tensor([4.0, 3.0, 2.0, 1.0])
    deltas = torch.tensor([[0.0, 1.0, 0.1, 0.0], [0.0, 1.0, 0.0, 5.0], [0.2, 0.9, 0.0, 0.0]])
    assert svf.critical(sigma, deltas, energy=0.9, cap=1.0, seeds=2).tolist() == [1]
    assert svf.critical(sigma, deltas, energy=0.9, cap=1.0, seeds=1).tolist() == [1, 3]
    assert svf.critical(sigma, torch.zeros(3, 4), energy=0.9, cap=1.0, seeds=1).tolist() == []


def gathered(n: int, tokens: int) -> Collector:
    """Rows with a falling spectrum, in parts."""
    mixing = random(n, n, 1) * torch.logspace(0, -2, n).double()
    collector = Collector(n, torch.device("cpu"))
    for part in torch.split((random(tokens, n, 0) @ mixing.mT).float(), 50):
        collector.add(part)
    return collector


@pytest.mark.parametrize("full_spectrum", [0, 400])
def test_wide_inputs_give_the_leading_directions_of_the_exact_moment(
    full_spectrum: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Summed in fp32 and searched, or in fp64 and decomposed: they hold the same energy."""
    whole = gathered(300, 900).moment()
    monkeypatch.setattr("adapters.moments.STORED_WHOLE", 100)
    monkeypatch.setattr("adapters.moments.FEW_TOKENS", 100)
    monkeypatch.setattr("adapters.moments.FULL_SPECTRUM", full_spectrum)
    wide = gathered(300, 900).moment(60)
    assert wide.trace == pytest.approx(whole.trace)
    assert wide.vectors.shape == (300, 60)
    assert torch.allclose(wide.values[:60], whole.values[:60], rtol=1e-2)
    assert wide.energy(60) == pytest.approx(whole.energy(60), rel=1e-3)
    kept = wide.vectors.double()
    assert torch.allclose(kept.mT @ kept, torch.eye(60, dtype=torch.float64), atol=1e-5)
    assert overlap(kept[:, :50], whole.vectors[:, :60]) > 0.999


def test_few_tokens_fill_few_directions_and_all_of_their_energy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = gathered(300, 40).moment()
    monkeypatch.setattr("adapters.moments.STORED_WHOLE", 100)
    moment = gathered(300, 40).moment(60)
    assert moment.vectors.shape == (300, 40)
    assert torch.allclose(moment.values, exact.values[:40], rtol=1e-4)
    assert overlap(moment.vectors, exact.vectors[:, :40]) == pytest.approx(1.0)
    assert moment.basis(share=0.2, by="directions").shape == (300, 40)
    assert moment.basis(share=0.9, by="energy").shape[1] < 40


@FEW
@given(st.integers(1, 60), st.integers(0, 2**31))
def test_leading_directions_hold_what_the_largest_eigenvalues_do(k: int, seed: int) -> None:
    factor = random(60, 60, seed) * torch.logspace(0, -2, 60).double()
    moment = factor @ factor.mT
    values, vectors = leading(moment, k)
    best = spectrum(moment)[0][:k]
    assert vectors.shape == (60, k)
    held = float((vectors.mT @ moment @ vectors).trace())
    assert held == pytest.approx(float(best.sum()), rel=1e-3)
    assert float(values.sum()) == pytest.approx(held, rel=1e-6)


# --- concatenation -----------------------------------------------------------------------------


@st.composite
def adapters(draw: st.DrawFn) -> list[Lora]:
    seed = draw(st.integers(0, 2**31))
    made = []
    for index in range(draw(st.integers(1, 4))):
        names = draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True))
        factors, scaling = {}, {}
        for name in names:
            rank = draw(st.integers(1, 5))
            factors[name] = (
                random(rank, 11, seed + index).float(),
                random(7, rank, seed - index).float(),
            )
            scaling[name] = draw(st.floats(0.1, 4.0))
        made.append(Lora(factors, scaling))
    return made


@FEW
@given(adapters(), st.booleans())
def test_concatenation_is_the_sum(parts: list[Lora], pad: bool) -> None:
    whole = concatenate(parts)
    if pad:
        whole = padded(whole, 32)
    for name in whole.factors:
        expected = sum(part.delta(name) for part in parts if name in part.factors)
        assert torch.allclose(whole.delta(name), expected, atol=1e-4)
    assert set(whole.factors) == {name for part in parts for name in part.factors}


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 2**31))
def test_what_is_cut_off_is_the_least_that_can_be(rank: int, kept: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, 9, generator=generator)
    up = torch.randn(7, rank, generator=generator)
    whole = Lora({"x": (down, up)}, {"x": 0.5})
    near_down, near_up = truncated(whole, "x", kept)
    assert near_down.shape[0] == near_up.shape[1] == min(rank, kept)
    lost = whole.delta("x") - near_up.double() @ near_down.double()
    tail = torch.linalg.svdvals(whole.delta("x"))[kept:]
    assert float(lost.norm()) == pytest.approx(float(tail.norm()), abs=1e-4)
    assert torch.allclose(near_down.norm(dim=1), near_up.norm(dim=0), rtol=1e-3)


def test_composed_file_answers_as_the_sum_does(tmp_path: Path) -> None:
    """Mixed ranks, scalings and modules; the file is what plain PEFT loads."""
    base = tiny.build(tmp_path / "base")
    shapes = models.expected_shapes(base)
    parts = []
    for index, (rank, kinds) in enumerate([(2, "gate_proj up_proj"), (5, "down_proj gate_proj")]):
        chosen = {n: s for n, s in shapes.items() if n.rsplit(".", 1)[-1] in kinds.split()}
        factors = {
            n: (random(rank, s[1], index).float() * 0.3, random(s[0], rank, index).float() * 0.3)
            for n, s in chosen.items()
        }
        part = Lora(factors, dict.fromkeys(factors, 0.5 + index))
        lora.write(tmp_path / f"part-{index}", part, "base")
        parts.append(part)
    rank = compose([tmp_path / "part-0", tmp_path / "part-1"], tmp_path / "whole", "base", 16)
    config = lora.read_config(tmp_path / "whole")
    assert rank == config["r"] == config["lora_alpha"] == 16
    plain = models.load_base(base, torch.device("cpu"))
    for name, matrix in models.matrices(plain).items():
        for part in parts:
            if name in part.factors:
                matrix.weight.data += part.delta(name).float()
    served = PeftModel.from_pretrained(
        models.load_base(base, torch.device("cpu")), tmp_path / "whole"
    )
    ids = torch.tensor([[5, 9, 70, 33]])
    assert torch.allclose(plain(ids).logits, served(ids).logits, atol=1e-4)


def test_empty_lineage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokenAdapter, match="base itself"):
        compose([], tmp_path / "out", "base")
