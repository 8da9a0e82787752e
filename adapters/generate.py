"""Decoding with several adapters resident: what the embedded server and the identity probe use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters import lora, models
from adapters.config import MLP
from adapters.decoding import Decoding, Request, Token, TokenScore
from adapters.errors import BrokenAdapter, UnknownAdapter

REFILL_SHARE = 0.25

__all__ = ["Decoding", "Generation", "Generator", "Request", "Token", "TokenScore"]


@dataclass(frozen=True, slots=True)
class Generation:
    """What one request became. `token_ids` includes the end-of-text token that stopped it.

    `logprobs`, `top` and `taken` (the prompt's tokens from the second on) are empty unless they
    were asked for; `finish_reason` is "stop", "length" or "abort".
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    top: tuple[tuple[tuple[int, float], ...], ...]
    finish_reason: str
    prompt_tokens: int
    taken: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, slots=True)
class _Resident:
    path: Path
    factors: Mapping[str, tuple[Tensor, Tensor]]


class Generator:
    """A base model and the adapters loaded beside it; to be used from one thread at a time.

    `load` and `unload` only change a dictionary: a decoding under way finishes on the adapter it
    started with.
    """

    def __init__(
        self,
        model_dir: Path,
        *,
        max_rank: int = 128,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int = 128,
    ) -> None:
        self.device = device or models.pick_device()
        self.max_rank = max_rank
        self.batch_size = batch_size
        self.model_dir = model_dir
        self.tokenizer = models.load_tokenizer(model_dir)
        self.model = models.load_base(model_dir, self.device, dtype)
        self._shapes = models.expected_shapes(model_dir)
        self._resident: dict[str, _Resident] = {}
        self._active: Mapping[str, tuple[Tensor, Tensor]] = {}
        self._eos = _eos_ids(self.model, self.tokenizer)
        for name, matrix in models.matrices(self.model, (*MLP, *models.ATTENTION)).items():
            matrix.register_forward_hook(self._adapted(name))

    @property
    def context_length(self) -> int:
        """The most tokens, prompt and answer together, that the model was made for."""
        return int(getattr(self.model.config, "max_position_embeddings", 2048))

    @property
    def loaded(self) -> dict[str, Path]:
        """The resident adapters and where they came from."""
        return {name: adapter.path for name, adapter in self._resident.items()}

    def load(self, name: str, path: Path) -> None:
        """Make the adapter at `path` resident as `name`.

        Raises `BrokenAdapter`: files missing or unreadable, rank above the maximum, tensors that
        do not fit the base, or the name taken by another path.
        """
        known = self._resident.get(name)
        if known is not None:
            if known.path == path:
                return
            raise BrokenAdapter(name, (f"already loaded from {known.path}",))
        if not path.is_dir():
            raise BrokenAdapter(name, (f"no directory {path}",))
        adapter = lora.read(path)
        if adapter.rank > self.max_rank:
            raise BrokenAdapter(name, (f"rank {adapter.rank} above the maximum {self.max_rank}",))
        factors = {}
        for matrix, (down, up) in adapter.factors.items():
            expected = self._shapes.get(matrix)
            if expected != (up.shape[0], down.shape[1]):
                raise BrokenAdapter(
                    name, (f"{matrix}: {(up.shape[0], down.shape[1])}, base has {expected}",)
                )
            factors[matrix] = self._place(down, up * adapter.scaling[matrix])
        self._resident[name] = _Resident(path, factors)

    def unload(self, name: str) -> None:
        """Forget an adapter; `UnknownAdapter` when it is not resident."""
        if self._resident.pop(name, None) is None:
            raise UnknownAdapter(f"no adapter named {name} is loaded")

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a plain prompt, as a server tokenises it."""
        return tuple(self.tokenizer(text)["input_ids"])

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """Token ids of a conversation up to where the assistant answers."""
        text = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def start(
        self, adapter: str | None, requests: Sequence[Request], *, stream: bool = False
    ) -> Decoding:
        """Begin a batch on one adapter (None: the base); advance it with `Decoding.step`."""
        factors: Mapping[str, tuple[Tensor, Tensor]] = {}
        if adapter is not None:
            resident = self._resident.get(adapter)
            if resident is None:
                raise UnknownAdapter(f"no adapter named {adapter} is loaded")
            factors = resident.factors

        def forward(**inputs: Any) -> Any:
            self._active = factors
            return self.model(**inputs)

        return Decoding(
            forward,
            self.tokenizer,
            requests,
            eos_ids=self._eos,
            pad_id=int(self.tokenizer.pad_token_id),
            device=self.device,
            sliding_window=getattr(self.model.config, "sliding_window", None),
            stream=stream,
        )

    def generate(
        self,
        adapter: str | None,
        requests: Sequence[Request],
        on_token: Callable[[Token], None] | None = None,
    ) -> list[Generation]:
        """Decode all requests on one adapter; what has finished makes room for what follows.

        `on_token` is called with every token as it comes; its `index` is that of the request.
        """
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids))
        asked = [requests[i] for i in order]
        if not asked:
            return []

        def step(decoding: Decoding, offset: int) -> Decoding:
            for token in decoding.step():
                if on_token is not None:
                    on_token(_renumbered(token, order[offset + token.index]))
            return decoding

        def begin(first: int, count: int) -> Decoding:
            chosen = asked[first : first + count]
            return step(self.start(adapter, chosen, stream=on_token is not None), first)

        batch = begin(0, self.batch_size)
        while not batch.done or len(batch.all) < len(asked):
            free = self.batch_size - batch.unfinished
            if len(batch.all) < len(asked) and free >= REFILL_SHARE * self.batch_size:
                batch.absorb(begin(len(batch.all), free))
            else:
                step(batch, 0)
        found = dict(zip(order, self.finish(batch), strict=True))
        return [found[i] for i in range(len(requests))]

    def finish(self, batch: Decoding) -> list[Generation]:
        """The results of a decoding, in the order of its requests."""
        for row in batch.all:
            if not row.request.stop:
                row.text = self.tokenizer.decode(row.ids, skip_special_tokens=True)
        return [
            Generation(
                s.text,
                tuple(s.ids),
                tuple(s.logprobs),
                tuple(s.top),
                s.finish or "abort",
                len(s.request.prompt_ids),
                tuple(s.taken),
            )
            for s in batch.all
        ]

    def _place(self, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        kind = self.model.dtype
        return down.to(self.device, kind), up.to(self.device, kind)

    def _adapted(self, name: str) -> Callable[[Any, tuple[Tensor, ...], Tensor], Tensor | None]:
        def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            pair = self._active.get(name)
            if pair is None:
                return None
            return output + F.linear(F.linear(args[0], pair[0]), pair[1])

        return hook


def _renumbered(token: Token, index: int) -> Token:
    return Token(index, token.token_id, token.text, token.logprob, token.top, token.finish)


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    found: set[int] = {int(tokenizer.eos_token_id)}
    for config in (model.generation_config, model.config):
        value = getattr(config, "eos_token_id", None)
        found.update([value] if isinstance(value, int) else value or [])
    return frozenset(found)
