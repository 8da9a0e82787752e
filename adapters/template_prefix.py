"""The chat template's constant prefix, read once in a step for all texts that begin with it.

Every text of the chat form begins with the same tokens, in many models a whole system prompt. In a
causal model their keys and values do not depend on what follows, so that one pass over them serves
all texts of a step, and one backward pass carries what all of them ask of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from adapters.examples import Encoded, encode, forms

SHORTEST: Final = 8
"""A shorter prefix is not worth passes of its own."""


def constant_prefix(tokenizer: Any) -> tuple[int, ...]:
    """The tokens with which every text of the chat form begins; none where they are few."""
    if "chat" not in forms(tokenizer):
        return ()
    one, other = (encode(tokenizer, word, "y", "chat").ids for word in ("a", "b"))
    same = next(n for n, (x, y) in enumerate(zip(one, other, strict=False)) if x != y)
    return one[:same] if same >= SHORTEST else ()


def begins_with(text: Encoded, prefix: Sequence[int]) -> bool:
    """Whether a text begins with the prefix, and has more of a prompt after it."""
    return bool(prefix) and text.start > len(prefix) and text.ids[: len(prefix)] == tuple(prefix)


def without(text: Encoded, prefix: Sequence[int]) -> Encoded:
    """The text that follows the prefix."""
    return Encoded(text.ids[len(prefix) :], text.start - len(prefix), text.key)


@dataclass(frozen=True, slots=True)
class ReadPrefix:
    """Keys and values of a prefix in every layer, each (1, heads, tokens, size)."""

    states: tuple[tuple[Tensor, Tensor], ...]

    @property
    def tokens(self) -> int:
        """How long it is."""
        return self.states[0][0].shape[2]

    def cache(self, rows: int) -> DynamicCache:
        """A cache in which `rows` texts have read the prefix."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.states):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        return cache


def read(decoder: Any, prefix: Sequence[int], device: torch.device) -> ReadPrefix:
    """Pass the prefix through the decoder once."""
    cache = DynamicCache()
    ids = torch.tensor([list(prefix)], device=device)
    decoder(input_ids=ids, past_key_values=cache, use_cache=True)
    return ReadPrefix(tuple((layer.keys, layer.values) for layer in cache.layers))


@contextmanager
def shared(decoder: Any, prefix: Sequence[int], device: torch.device) -> Iterator[ReadPrefix]:
    """Within it, backward passes stop at the prefix's keys and values; at the end one backward pass
    carries on what they left there. After an exception nothing is carried on.
    """
    whole = read(decoder, prefix, device)
    leaves = ReadPrefix(
        tuple((k.detach().requires_grad_(), v.detach().requires_grad_()) for k, v in whole.states)
    )
    yield leaves
    given = [
        (tensor, leaf.grad)
        for tensors, their_leaves in zip(whole.states, leaves.states, strict=True)
        for tensor, leaf in zip(tensors, their_leaves, strict=True)
        if leaf.grad is not None and tensor.requires_grad
    ]
    if given:
        torch.autograd.backward([tensor for tensor, _ in given], [grad for _, grad in given])
