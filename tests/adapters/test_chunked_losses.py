"""Chunked losses: the same values and gradients as whole logits give, in a part of their memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from adapters import chunked_losses
from adapters.chunked_losses import Head, cross_entropy, entropy, kl_divergence

TOKENS, HIDDEN, WORDS = 37, 16, 301


def matrix(*, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(HIDDEN, WORDS, bias=bias).requires_grad_(False)


def head_of(one: nn.Linear) -> Head:
    head = Head.of(one)
    assert head is not None
    return head


def drawn(seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(TOKENS, HIDDEN, generator=draw)


def tokens() -> Tensor:
    return torch.randint(WORDS, (TOKENS,), generator=torch.Generator().manual_seed(2))


def with_gradient(
    losses: Callable[[Tensor], Tensor], upstream: Tensor, states: Tensor
) -> tuple[Tensor, Tensor]:
    """The losses (m,), and the gradient to the states where each loss has a weight of its own."""
    leaf = states.clone().requires_grad_()
    found = losses(leaf)
    (gradient,) = torch.autograd.grad((found * upstream).sum(), leaf)
    return found.detach(), gradient


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 5, TOKENS, 10 * TOKENS])
def test_chunked_is_whole(chunk: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both losses and their gradients, each token with its own weight, to 1e-5."""
    monkeypatch.setattr(chunked_losses, "CHUNK_BYTES", chunk * 4 * WORDS)
    output, targets, base, heat = matrix(bias=bias), tokens(), drawn(1), 4.0
    head, upstream = head_of(output), torch.rand(TOKENS)

    def whole_kl(states: Tensor) -> Tensor:
        before = F.log_softmax(output(base) / heat, dim=-1)
        now = F.log_softmax(output(states) / heat, dim=-1)
        return heat**2 * F.kl_div(now, before, reduction="none", log_target=True).sum(-1)

    pairs: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
        (
            lambda s: cross_entropy(head, s, targets),
            lambda s: F.cross_entropy(output(s), targets, reduction="none"),
        ),
        (lambda s: kl_divergence(head, base, s, heat), whole_kl),
    ]
    for chunked, whole in pairs:
        found, expected = (with_gradient(one, upstream, drawn(0)) for one in (chunked, whole))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    logs = output(base).log_softmax(-1)
    torch.testing.assert_close(entropy(head, base), -(logs.exp() * logs).sum(-1))


def test_no_learnt_token_has_no_loss() -> None:
    head, nothing = head_of(matrix()), torch.empty(0, HIDDEN, requires_grad=True)
    found = cross_entropy(head, nothing, torch.empty(0, dtype=torch.long))
    found.sum().backward()
    assert found.shape == (0,)
    assert nothing.grad is not None


def test_only_a_plain_frozen_matrix_has_a_chunked_form() -> None:
    assert Head.of(matrix().requires_grad_()) is None
    assert Head.of(nn.Sequential(matrix())) is None


def peak(work: Callable[[], object]) -> int:
    """The most bytes that it held at once beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    held = most = 0
    for event in seen.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def test_chunks_bound_what_the_losses_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 512 tokens over 8,000 words the logits are 16 MB; chunks of half a megabyte need few."""
    chunk, words, many = 1 << 19, 8000, 512
    monkeypatch.setattr(chunked_losses, "CHUNK_BYTES", chunk)
    output = nn.Linear(HIDDEN, words, bias=False).requires_grad_(False)
    states = torch.randn(many, HIDDEN, requires_grad=True)
    base, targets, head = torch.randn(many, HIDDEN), torch.zeros(many).long(), head_of(output)
    small = many * (2 * HIDDEN + 8) * 4
    assert peak(lambda: F.cross_entropy(output(states), targets).backward()) > many * words * 4
    assert peak(lambda: cross_entropy(head, states, targets).sum().backward()) < 4 * chunk + small
    assert peak(lambda: kl_divergence(head, base, states, 2.0).sum().backward()) < 5 * chunk + small
