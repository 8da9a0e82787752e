"""Where a run's texts go through the model, and how many tokens at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch

from adapters import memory
from adapters.config import TrainConfig
from adapters.examples import Encoded, PaddedBatch, buckets, collate
from adapters.packing import PackedBatch, pack, packable
from adapters.template_prefix import begins_with, constant_prefix

CPU_TOKENS: Final = memory.CPU_TOKENS
GPU_TOKENS: Final = memory.GPU_TOKENS
Text = TypeVar("Text")


@dataclass
class Passes:
    """The device, the padding token, and the most tokens of one forward pass.

    `max_tokens` only falls during a run, when the device's memory is too small.
    """

    device: torch.device
    pad: int
    max_tokens: int
    prefix: tuple[int, ...] = ()
    """The chat template's constant prefix, where it is worth reading once for all texts."""
    packed: bool = True
    """Whether the texts of a pass are packed into one row; else they are padded."""

    @classmethod
    def of(cls, config: TrainConfig, model: Any, tokenizer: Any) -> Passes:
        """As configured, or as suits the model and its device."""
        return cls(
            model.device,
            int(tokenizer.pad_token_id),
            memory.pass_tokens(config, model.device.type),
            constant_prefix(tokenizer),
            packable(model),
        )

    def batch(self, texts: Sequence[Encoded]) -> PackedBatch | PaddedBatch:
        """The texts as one pass on the device."""
        if self.packed:
            return pack(texts).to(self.device)
        return collate(texts, self.pad).to(self.device)

    def parted(
        self, texts: Iterable[Text], text: Callable[[Text], Encoded]
    ) -> tuple[list[Text], list[Text]]:
        """Those whose `text` begins with the prefix, and all others."""
        with_prefix: list[Text] = []
        others: list[Text] = []
        for one in texts:
            (with_prefix if begins_with(text(one), self.prefix) else others).append(one)
        return with_prefix, others

    def groups(self, texts: Iterable[Text], size: Callable[[Text], int]) -> list[list[Text]]:
        """Groups of texts that each fit into one pass where a single text does."""
        return buckets(texts, self.max_tokens, size, padded=not self.packed)

    def halve(self, longest: int) -> bool:
        """Halve the passes, to no less than the longest text; False where they are that already."""
        if self.max_tokens <= longest:
            return False
        self.max_tokens = max(self.max_tokens // 2, longest)
        return True
