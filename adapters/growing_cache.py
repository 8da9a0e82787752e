"""A layer of the key-value cache with room to grow, from which rows are dropped and added."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

ROOM = 64


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # transformers' classes are untyped here
    """A cache layer in one buffer that doubles, instead of a concatenation at every token."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append states of shape (batch, heads, new, size); return all of them so far."""
        start = 0 if self.keys is None else self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if self._buffers is None or end > self._buffers[0].shape[-2]:
            self._grow(key_states, value_states, end)
        assert self._buffers is not None  # noqa: S101  # set by _grow
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self._show(end)
        return self.keys, self.values

    def keep(self, rows: Tensor, first: int) -> None:
        """Keep only these rows of the batch, and of what they hold only what is from `first` on."""
        if self._buffers is not None:
            end = self.keys.shape[-2] - first
            self._buffers = tuple(b.index_select(0, rows)[:, :, first:] for b in self._buffers)  # type: ignore[assignment]  # two in, two out
            self._show(end)

    def absorb(self, other: GrowingLayer) -> None:
        """Put the rows of another layer below these, both padded on the left to one length."""
        end = max(self.keys.shape[-2], other.keys.shape[-2])
        fresh = []
        for mine, its in ((self.keys, other.keys), (self.values, other.values)):
            rows = mine.shape[0] + its.shape[0]
            buffer = mine.new_empty((rows, mine.shape[1], end + ROOM, mine.shape[3]))
            for part, below in ((mine, buffer[: mine.shape[0]]), (its, buffer[mine.shape[0] :])):
                below[:, :, : end - part.shape[-2]] = 0.0
                below[:, :, end - part.shape[-2] : end] = part
            fresh.append(buffer)
        self._buffers = (fresh[0], fresh[1])
        self._show(end)

    def _grow(self, keys: Tensor, values: Tensor, end: int) -> None:
        room = ROOM if self._buffers is None else end
        fresh = []
        for states, old in zip((keys, values), (self.keys, self.values), strict=True):
            shape = (*states.shape[:2], end + room, states.shape[-1])
            buffer = states.new_empty(shape)
            if old is not None:
                buffer[:, :, : old.shape[-2]] = old
            fresh.append(buffer)
        self._buffers = (fresh[0], fresh[1])
        self.is_initialized = True
        self.dtype, self.device = keys.dtype, keys.device

    def _show(self, end: int) -> None:
        assert self._buffers is not None  # noqa: S101  # called after it is set
        self.keys = self._buffers[0][:, :, :end]
        self.values = self._buffers[1][:, :, :end]
