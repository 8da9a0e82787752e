"""Chunked losses: the same values and gradients as whole logits give, in a part of their memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from adapters import lm_head
from adapters.lm_head import ChunkedHead, WholeHead, head_of

TOKENS, HIDDEN, WORDS = 37, 16, 301


def matrix(*, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(HIDDEN, WORDS, bias=bias).requires_grad_(False)


class Model:
    """What is asked of a model: its output matrix."""

    def __init__(self, output: nn.Module) -> None:
        self.output = output

    def get_output_embeddings(self) -> nn.Module:
        return self.output


def chunked(output: nn.Linear) -> ChunkedHead:
    head = head_of(Model(output))
    assert isinstance(head, ChunkedHead)
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
    monkeypatch.setattr(lm_head, "CHUNK_BYTES", chunk * 4 * WORDS)
    output, targets, base, heat = matrix(bias=bias), tokens(), drawn(1), 4.0
    head, whole, upstream = chunked(output), WholeHead(output), torch.rand(TOKENS)
    pairs: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
        (lambda s: head.cross_entropy(s, targets), lambda s: whole.cross_entropy(s, targets)),
        (
            lambda s: head.kl_divergence(base, s, heat),
            lambda s: whole.kl_divergence(base, s, heat),
        ),
    ]
    for pair in pairs:
        found, expected = (with_gradient(one, upstream, drawn(0)) for one in pair)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.entropy(base), whole.entropy(base))


def test_no_learnt_token_has_no_loss() -> None:
    head, nothing = chunked(matrix()), torch.empty(0, HIDDEN, requires_grad=True)
    found = head.cross_entropy(nothing, torch.empty(0, dtype=torch.long))
    found.sum().backward()
    assert found.shape == (0,)
    assert nothing.grad is not None


def test_a_matrix_that_is_trained_or_wrapped_is_taken_whole() -> None:
    trained = matrix().requires_grad_()
    head = head_of(Model(trained))
    assert isinstance(head, WholeHead)
    head.cross_entropy(drawn(0), tokens()).sum().backward()
    assert trained.weight.grad is not None
    assert isinstance(head_of(Model(nn.Sequential(matrix()))), WholeHead)


def test_whole_divergence_and_entropy_are_those_of_the_distributions() -> None:
    output, base, now = matrix(), drawn(1), drawn(0)
    before, after = ((output(one) / 2.0).softmax(-1) for one in (base, now))
    expected = 4.0 * (before * (before / after).log()).sum(-1)
    head = WholeHead(output)
    torch.testing.assert_close(head.kl_divergence(base, now, 2.0), expected, rtol=1e-3, atol=1e-3)
    said = torch.distributions.Categorical(logits=output(base))
    torch.testing.assert_close(head.entropy(base), said.entropy())


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
    monkeypatch.setattr(lm_head, "CHUNK_BYTES", chunk)
    output = nn.Linear(HIDDEN, words, bias=False).requires_grad_(False)
    states = torch.randn(many, HIDDEN, requires_grad=True)
    base, targets, head = torch.randn(many, HIDDEN), torch.zeros(many).long(), chunked(output)
    whole, small = many * words * 4, many * (2 * HIDDEN + 8) * 4
    assert peak(lambda: WholeHead(output).cross_entropy(states, targets).sum().backward()) > whole
    assert peak(lambda: head.cross_entropy(states, targets).sum().backward()) < 4 * chunk + small
    assert peak(lambda: head.kl_divergence(base, states, 2.0).sum().backward()) < 5 * chunk + small
