"""Step-wise batched decoding: left padding, finished rows dropped, other batches absorbed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from adapters.growing_cache import GrowingLayer

DROP_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to continue. `logprobs` asks for that many alternatives (None: none at all),
    `prompt_logprobs` for how the model takes the prompt's own tokens.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int = 16
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: bool = False


@dataclass(frozen=True, slots=True)
class TokenScore:
    """How a model takes one token of a prompt: its log-probability after those before it, and its
    rank in the vocabulary (1: greedy decoding would have said it).
    """

    token_id: int
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class Token:
    """One decoded token of the request at `index`; `text` is what has become readable by it.

    `logprob` and the alternatives `top` (token id, log-probability) belong to the model's own
    distribution, before temperature. `finish` is set on the last one.
    """

    index: int
    token_id: int
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: str | None = None


@dataclass(slots=True)
class SequenceState:
    """The state of one request while it is decoded."""

    index: int
    request: Request
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    taken: list[TokenScore] = field(default_factory=list)
    text: str = ""
    sent: int = 0
    finish: str | None = None
    generator: torch.Generator | None = None


class Decoding:
    """A batch of requests on one adapter, advanced one token at a time by `step`."""

    def __init__(
        self,
        forward: Callable[..., Any],
        tokenizer: Any,
        requests: Sequence[Request],
        *,
        eos_ids: frozenset[int],
        pad_id: int,
        device: torch.device,
        sliding_window: int | None = None,
        stream: bool = False,
    ) -> None:
        self._forward = forward
        self._tokenizer = tokenizer
        self._eos = eos_ids
        self._stream = stream
        self._window = sliding_window
        self.all = [SequenceState(i, request) for i, request in enumerate(requests)]
        for sequence in self.all:
            if sequence.request.temperature > 0.0:
                sequence.generator = torch.Generator(device=device)
                seed = sequence.request.seed
                sequence.generator.seed() if seed is None else sequence.generator.manual_seed(seed)
        self._rows = list(self.all)
        self._cache = Cache(layer_class_to_replicate=GrowingLayer)
        width = max(len(r.prompt_ids) for r in requests)
        ids = torch.full((len(requests), width), pad_id, dtype=torch.long)
        mask = torch.zeros((len(requests), width), dtype=torch.bool)
        for row, request in enumerate(requests):
            start = width - len(request.prompt_ids)
            ids[row, start:] = torch.tensor(request.prompt_ids, dtype=torch.long)
            mask[row, start:] = True
        self._next = ids.to(device)
        self._mask = mask.to(device)
        self._position = (self._mask.long().cumsum(1) - 1).clamp_min(0)

    @property
    def done(self) -> bool:
        """Whether every request has finished."""
        return not any(s.finish is None for s in self._rows)

    @property
    def unfinished(self) -> int:
        """How many requests still get tokens."""
        return sum(s.finish is None for s in self._rows)

    def absorb(self, other: Decoding) -> int:
        """Take over another batch on the same adapter; both must have been stepped before.

        Its requests are numbered on from what is returned, and it must not be stepped again.
        """
        self._drop_finished(0.0)
        other._drop_finished(0.0)
        offset = len(self.all)
        for sequence in other.all:
            sequence.index += offset
        self.all += other.all
        if other.done:
            return offset
        if self.done:
            self._rows, self._cache = other._rows, other._cache
            self._next, self._position, self._mask = other._next, other._position, other._mask
            return offset
        width = max(self._mask.shape[1], other._mask.shape[1])
        self._mask = torch.cat([_widened(self._mask, width), _widened(other._mask, width)])
        self._next = torch.cat([self._next, other._next])
        self._position = torch.cat([self._position, other._position])
        self._rows = [*self._rows, *other._rows]
        for mine, its in zip(self._cache.layers, other._cache.layers, strict=True):
            mine.absorb(its)
        return offset

    def cancel(self, index: int) -> None:
        """Give up the request at `index`, for instance when its client has gone."""
        if self.all[index].finish is None:
            self.all[index].finish = "abort"

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """Decode one token for every unfinished request; only streams return their tokens."""
        self._drop_finished()
        if self.done:
            return []
        logits = self._logits()
        chosen = logits.argmax(dim=-1)
        for row, sequence in enumerate(self._rows):
            if sequence.generator is not None and sequence.finish is None:
                chosen[row] = _sample(logits[row], sequence.request, sequence.generator)
        self._record_logprobs(logits, chosen)
        tokens = self._advance(chosen.tolist())
        self._next = chosen[:, None]
        self._position = self._position[:, -1:] + 1
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._rows), 1)], dim=1)
        return tokens

    def _logits(self) -> Tensor:
        mask: Tensor | None = self._mask
        width = self._mask.shape[1]
        decoding = self._next.shape[1] == 1 and width > 1
        if decoding and (self._window is None or width <= self._window):
            # One new query sees every key that is no padding: no causal mask to build.
            mask = None if bool(self._mask.all()) else self._mask[:, None, None, :]
        output = self._forward(
            input_ids=self._next,
            attention_mask=mask,
            position_ids=self._position,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=0 if self._asks_for_prompts() else 1,
        )
        if output.logits.shape[1] > 1:
            self._record_prompts(output.logits)
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def _asks_for_prompts(self) -> bool:
        prefill = self._next.shape[1] > 1
        return prefill and any(s.request.prompt_logprobs for s in self._rows)

    def _record_prompts(self, logits: Tensor) -> None:
        """Note how the prompts' own tokens are taken, row by row: all at once could be large."""
        for row, sequence in enumerate(self._rows):
            ids = sequence.request.prompt_ids
            if not sequence.request.prompt_logprobs or len(ids) < 2:
                continue
            own = self._next[row, -len(ids) + 1 :, None]
            scores = logits[row, -len(ids) : -1].float().log_softmax(dim=-1)
            chosen = scores.gather(1, own)
            ranks = (scores > chosen).sum(dim=-1) + 1
            values = zip(ids[1:], chosen[:, 0].tolist(), ranks.tolist(), strict=True)
            sequence.taken = [TokenScore(*value) for value in values]

    def _record_logprobs(self, logits: Tensor, chosen: Tensor) -> None:
        asked = [s.request.logprobs for s in self._rows if s.request.logprobs is not None]
        if not asked:
            return
        scores = logits.log_softmax(dim=-1)
        own = scores.gather(1, chosen[:, None])[:, 0].tolist()
        best = max(1, *asked) if len(asked) > 1 else max(1, asked[0])
        values, ids = (t.tolist() for t in scores.topk(min(best, scores.shape[-1]), dim=-1))
        for row, sequence in enumerate(self._rows):
            count = sequence.request.logprobs
            if count is not None and sequence.finish is None:
                sequence.logprobs.append(own[row])
                pairs = zip(ids[row][:count], values[row][:count], strict=True)
                sequence.top.append(tuple(pairs))

    def _advance(self, chosen: list[int]) -> list[Token]:
        tokens = []
        for sequence, token in zip(self._rows, chosen, strict=True):
            if sequence.finish is not None:
                continue
            sequence.ids.append(token)
            request = sequence.request
            if token in self._eos and not request.ignore_eos:
                sequence.finish = "stop"
            elif len(sequence.ids) >= request.max_tokens:
                sequence.finish = "length"
            if request.stop or self._stream:
                tokens.append(self._publish(sequence, token))
        return tokens if self._stream else []

    def _publish(self, sequence: SequenceState, token: int) -> Token:
        text = self._tokenizer.decode(sequence.ids, skip_special_tokens=True)
        cut = min((i for s in sequence.request.stop if (i := text.find(s)) >= 0), default=None)
        if cut is not None:
            text, sequence.finish = text[:cut], "stop"
        sequence.text = text
        ready = len(text) if sequence.finish else _readable(text, sequence.request.stop)
        delta, sequence.sent = text[sequence.sent : ready], max(sequence.sent, ready)
        logprob = sequence.logprobs[-1] if sequence.logprobs else None
        top = sequence.top[-1] if sequence.top else ()
        return Token(sequence.index, token, delta, logprob, top, sequence.finish)

    def _drop_finished(self, share: float = DROP_SHARE) -> None:
        alive = [row for row, s in enumerate(self._rows) if s.finish is None]
        gone = len(self._rows) - len(alive)
        if not alive or gone < max(1.0, share * len(self._rows)):
            return
        rows = torch.tensor(alive, device=self._next.device)
        self._rows = [self._rows[row] for row in alive]
        self._next = self._next.index_select(0, rows)
        self._position = self._position.index_select(0, rows)
        mask = self._mask.index_select(0, rows)
        first = int(mask.any(dim=0).int().argmax())
        self._mask = mask[:, first:]
        for layer in self._cache.layers:
            layer.keep(rows, first)


def _widened(mask: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(mask, (width - mask.shape[1], 0))


def _readable(text: str, stops: Sequence[str]) -> int:
    """How much of `text` can be sent: no half character, nothing that may begin a stop string."""
    end = len(text)
    while end and text[end - 1] == "\ufffd":
        end -= 1
    for stop in stops:
        for size in range(min(len(stop) - 1, end), 0, -1):
            if text[:end].endswith(stop[:size]):
                end -= size
                break
    return end


def _sample(logits: Tensor, request: Request, generator: torch.Generator) -> Tensor:
    """One draw from softmax(logits / temperature), cut to the nucleus of mass `top_p`."""
    probabilities = (logits / request.temperature).softmax(dim=-1)
    if request.top_p < 1.0:
        ordered, order = probabilities.sort(descending=True)
        outside = ordered.cumsum(0) - ordered >= request.top_p
        probabilities = probabilities.scatter(0, order, ordered.masked_fill(outside, 0.0))
    return torch.multinomial(probabilities, 1, generator=generator)[0]
