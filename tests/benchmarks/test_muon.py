"""Muon: every singular direction of the momentum alike, as in torch's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.probe import Protection
from adapters.trainer import train_adapter
from benchmarks.learning.methods import METHODS
from benchmarks.learning.muon import Muon, orthogonal
from tests.support.fitted import Fitted


def matrix(rows: int, columns: int, smallest: float, seed: int) -> torch.Tensor:
    """Shape (2, rows, columns); singular values fall from 1 to `smallest`."""
    drawn = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(seed))
    left, sigma, right = torch.linalg.svd(drawn, full_matrices=False)
    falling = torch.logspace(0, float(torch.log10(torch.tensor(smallest))), sigma.shape[-1])
    return left * falling @ right


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 60),
    smallest=st.sampled_from([1.0, 0.1, 0.01]),
    size=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 99),
)
def test_every_direction_is_taken_alike(
    rows: int, columns: int, smallest: float, size: float, seed: int
) -> None:
    given_ = matrix(rows, columns, smallest, seed)
    found = orthogonal(size * given_)
    sigma = torch.linalg.svdvals(found)
    share = torch.linalg.svdvals(given_) / given_.norm(dim=(-2, -1))[:, None]
    assert sigma.max() < 1.25
    assert sigma[share >= 0.01].min() > 0.6
    inner = found @ given_.mT
    assert torch.allclose(inner, inner.mT, atol=1e-3), "the singular vectors stay"


def test_nothing_comes_of_nothing() -> None:
    assert torch.equal(orthogonal(torch.zeros(1, 3, 5)), torch.zeros(1, 3, 5))


def walk(make: type[torch.optim.Optimizer], seed: int, **options: object) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    shapes = [(4, 24), (24, 4), (4, 24), (6, 6)]
    factors = [torch.randn(shape, generator=draws).requires_grad_() for shape in shapes]
    optimizer = make(factors, lr=0.01, weight_decay=0.1, **options)
    for _ in range(4):
        for factor in factors:
            factor.grad = torch.randn(factor.shape, generator=draws)
        optimizer.step()
    return [factor.detach() for factor in factors]


@pytest.mark.parametrize("seed", range(3))
def test_it_moves_as_torchs_own_does(seed: int) -> None:
    """Which differs by the rounding of bf16."""
    ours = walk(Muon, seed)
    theirs = walk(torch.optim.Muon, seed, adjust_lr_fn="match_rms_adamw")
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() < 0.04 * 4 * 0.01


def test_a_run_goes_on_where_its_state_was_kept() -> None:
    draws = torch.Generator().manual_seed(1)
    gradients = [torch.randn(4, 24, generator=draws) for _ in range(4)]
    whole, part = (torch.zeros(4, 24, requires_grad=True) for _ in range(2))
    straight, first = Muon([whole], 0.01), Muon([part], 0.01)
    for gradient in gradients:
        whole.grad = gradient
        straight.step()
    for gradient in gradients[:2]:
        part.grad = gradient
        first.step()
    again = Muon([part], 0.5)
    again.load_state_dict(first.state_dict())
    for gradient in gradients[2:]:
        part.grad = gradient
        again.step()
    assert torch.equal(whole, part)


def test_an_adapter_trained_with_it_learns_and_does_not_leak(llama: Fitted, tmp_path: Path) -> None:
    config = {"steps": 60, "learning_rate": 0.03}
    plan = llama.plan(protection=Protection(kind="svf+activations", share=0.3), config=config)
    report = train_adapter(
        plan, out=tmp_path / "out", work=tmp_path / "work", recipe=METHODS["palorad, Muon"].recipe()
    )
    assert report.leak < 1e-5
    assert report.loss_last < 0.7 * report.loss_first
