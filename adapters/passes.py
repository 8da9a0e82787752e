"""Where a run's texts go through the model, and how many tokens at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch

from adapters.config import TrainConfig
from adapters.examples import Encoded, PaddedBatch, buckets, collate
from adapters.template_prefix import begins_with, constant_prefix

CPU_TOKENS: Final = 512
GPU_TOKENS: Final = 4096
Text = TypeVar("Text")


@dataclass
class Passes:
    """The device, the padding token, and the most padded tokens of one forward pass.

    `max_tokens` only falls during a run, when the device's memory is too small.
    """

    device: torch.device
    pad: int
    max_tokens: int
    prefix: tuple[int, ...] = ()
    """The chat template's constant prefix, where it is worth reading once for all texts."""

    @classmethod
    def of(cls, config: TrainConfig, device: torch.device, tokenizer: Any) -> Passes:
        """As configured, or as suits the device."""
        usual = CPU_TOKENS if device.type == "cpu" else GPU_TOKENS
        tokens = config.max_tokens or usual
        return cls(device, int(tokenizer.pad_token_id), tokens, constant_prefix(tokenizer))

    def batch(self, texts: Sequence[Encoded]) -> PaddedBatch:
        """The texts as one padded batch on the device."""
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
        return buckets(texts, self.max_tokens, size)

    def halve(self, longest: int) -> bool:
        """Halve the passes, to no less than the longest text; False where they are that already."""
        if self.max_tokens <= longest:
            return False
        self.max_tokens = max(self.max_tokens // 2, longest)
        return True
