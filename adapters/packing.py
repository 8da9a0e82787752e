"""Texts one behind the other in one row, none of which sees another: nothing is padded.

Everything but attention treats each token alone, so that a row costs its tokens and no padding.
Attention takes the texts out of the row, those of like length together, and puts its results back:
with a mask over the whole row it would cost the square of the row's length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from adapters.examples import Encoded
from adapters.precision import SDPA
from adapters.template_prefix import ReadPrefix

KINDS: Final = ("llama", "mistral", "qwen2", "qwen3")
"""Model types in which nothing but attention mixes tokens, as tests confirm."""
PACKED: Final = "palorad_packed"
SPREAD: Final = 2
"""Of the texts that attention reads together the longest is at most so many times the shortest."""


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Where attention finds the texts of a row.

    Each block has the places (texts, width) of the tokens that are read together; a shorter text
    repeats its last place. `back` (tokens,) says where each token of the row lies in the blocks,
    flattened and one behind the other.
    """

    blocks: tuple[Tensor, ...]
    back: Tensor

    @property
    def slots(self) -> int:
        """How many tokens attention reads, padded."""
        return sum(block.numel() for block in self.blocks)

    def to(self, device: torch.device) -> RowLayout:
        """The same elsewhere."""
        return RowLayout(tuple(block.to(device) for block in self.blocks), self.back.to(device))


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A row of texts: ids and positions (1, t), the m places before learnt tokens, those tokens.

    Each text's positions begin at 0, whatever lies before it in the row.
    """

    ids: Tensor
    positions: Tensor
    before: Tensor
    targets: Tensor
    layout: RowLayout

    def to(self, device: torch.device) -> PackedBatch:
        """The same row elsewhere."""
        return PackedBatch(
            self.ids.to(device),
            self.positions.to(device),
            self.before.to(device),
            self.targets.to(device),
            self.layout.to(device),
        )


def packable(model: Any) -> bool:
    """Whether texts may be packed for this model; for any other they are padded."""
    config = model.config
    return config.model_type in KINDS and config._attn_implementation == SDPA


def pack(texts: Sequence[Encoded]) -> PackedBatch:
    """The texts in their order as one row."""
    lengths = [len(one.ids) for one in texts]
    starts = [0, *accumulate(lengths)]
    before = [
        start + place - 1
        for one, start in zip(texts, starts, strict=False)
        for place in range(one.start, len(one.ids))
    ]
    return PackedBatch(
        torch.tensor([[token for one in texts for token in one.ids]]),
        torch.tensor([[place for length in lengths for place in range(length)]]),
        torch.tensor(before, dtype=torch.long),
        torch.tensor([t for one in texts for t in one.ids[one.start :]], dtype=torch.long),
        _layout(lengths, starts),
    )


def last_hidden(decoder: Any, batch: PackedBatch, prefix: ReadPrefix | None) -> Tensor:
    """Last hidden states (t, hidden size) of a row whose texts all follow `prefix`, if given."""
    with _packed(decoder.config):
        found: Tensor = decoder(
            input_ids=batch.ids,
            position_ids=batch.positions + (0 if prefix is None else prefix.tokens),
            use_cache=False,
            layout=batch.layout,
            prefix=prefix,
        ).last_hidden_state
    return found[0]


@contextmanager
def _packed(config: Any) -> Iterator[None]:
    config._attn_implementation = PACKED
    try:
        yield
    finally:
        config._attn_implementation = SDPA


def _layout(lengths: Sequence[int], starts: Sequence[int]) -> RowLayout:
    blocks, back, offset = [], [0] * starts[len(lengths)], 0
    for members in _alike(lengths):
        width = max(lengths[n] for n in members)
        blocks.append(
            torch.tensor(
                [[starts[n] + min(i, lengths[n] - 1) for i in range(width)] for n in members]
            )
        )
        for n in members:
            back[starts[n] : starts[n + 1]] = range(offset, offset + lengths[n])
            offset += width
    return RowLayout(tuple(blocks), torch.tensor(back))


def _alike(lengths: Sequence[int]) -> list[list[int]]:
    """The texts' numbers, those of like length together."""
    groups: list[list[int]] = []
    for n in sorted(range(len(lengths)), key=lengths.__getitem__):
        if groups and lengths[n] <= SPREAD * lengths[groups[-1][0]]:
            groups[-1].append(n)
        else:
            groups.append([n])
    return groups


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: RowLayout,
    prefix: ReadPrefix | None = None,
    sliding_window: int | None = None,
    **options: Any,  # what transformers gives every attention
) -> tuple[Tensor, None]:
    """Attention of each text of a row (1, heads, t, size) over itself and the prefix."""
    attend = ALL_ATTENTION_FUNCTIONS[SDPA]
    rows = [one[0].transpose(0, 1) for one in (query, key, value)]
    number = module.layer_idx  # transformers numbers its attention layers
    read = () if prefix is None else prefix.states[int(number)]  # type: ignore[arg-type]  # see above
    found = []
    for block in layout.blocks:
        q, k, v = (
            one.index_select(0, block.flatten()).view(*block.shape, *one.shape[1:]).transpose(1, 2)
            for one in rows
        )
        if read:
            k, v = (
                torch.cat([seen.expand(len(own), -1, -1, -1), own], dim=2)
                for seen, own in zip(read, (k, v), strict=True)
            )
        mask = _mask(q.shape[2], k.shape[2], sliding_window, q.device)
        found.append(attend(module, q, k, v, mask, **options)[0].flatten(0, 1))
    return torch.cat(found).index_select(0, layout.back)[None], None


def _mask(width: int, seen: int, window: int | None, device: torch.device) -> Tensor | None:
    """Which of the `seen` keys the last `width` tokens see; None where a causal mask says it."""
    if width == seen and (window is None or seen <= window):
        return None
    allowed = torch.ones(width, seen, dtype=torch.bool, device=device).tril(seen - width)
    if window is not None:
        allowed = allowed.triu(seen - width - window + 1)
    return allowed[None, None]


ALL_ATTENTION_FUNCTIONS.register(PACKED, _attend)
