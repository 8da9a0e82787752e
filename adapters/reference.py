"""The frozen base as reference model of the KL terms: its predictions, found once and kept.

The base's next-token distributions on known facts and reasoning traces never change. Its last
hidden states are kept: the output matrix, which is never trained, turns them into whole
distributions at a small part of the cost of a forward pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from adapters import cache, memory
from adapters.examples import Encoded, length
from adapters.losses import decoder, head, learnt_states
from adapters.passes import Passes
from adapters.template_prefix import ReadPrefix, read, without

FORMAT: Final = 1
PREFIX: Final = "reference-"
MOST_BYTES: Final = memory.RECORDED_BYTES


@dataclass(frozen=True, slots=True)
class Predictions:
    """At m learnt tokens: the hidden states (m, hidden size) before them, in the model's own
    precision, and the entropy (m,) of the next token in nats.
    """

    states: Tensor
    entropy: Tensor

    @staticmethod
    def joined(parts: Sequence[Predictions]) -> Predictions:
        """All of them in a row."""
        return Predictions(
            torch.cat([s.states for s in parts]), torch.cat([s.entropy for s in parts])
        )


@dataclass(frozen=True)
class Reference:
    """The frozen base: `entered` turns the model that is trained into it for a while.

    `rows` says where in `kept` the learnt tokens of a text lie; other texts are passed through it.
    """

    model: Any
    entered: Callable[[], AbstractContextManager[Any]]
    kept: Predictions
    rows: dict[tuple[tuple[int, ...], int], slice] = field(repr=False)
    passes: Passes

    @torch.no_grad()
    def states(self, texts: Sequence[Encoded]) -> Tensor:
        """Its last hidden states (m, hidden size) before the learnt tokens of texts, in order."""
        found = [row for text in texts if (row := self.rows.get(_key(text))) is not None]
        if len(found) < len(texts):
            with self.entered() as model:
                return learnt_states(model, self.passes.batch(texts))[0]
        places = [place for row in found for place in range(row.start, row.stop)]
        return self.kept.states[places].to(self.passes.device)

    def entropy(self, text: Encoded) -> float | None:
        """Entropy of the next token in nats, summed over a text's learnt tokens, if recorded."""
        row = self.rows.get(_key(text))
        return None if row is None else float(self.kept.entropy[row].sum())


def record(
    model: Any,
    entered: Callable[[], AbstractContextManager[Any]],
    texts: Sequence[Encoded],
    passes: Passes,
    *,
    base_hash: str,
    folder: Path | None,
) -> Reference:
    """The base below `model` with `texts` recorded, read from `folder` if they are there already.

    Of more texts than fit in a gigabyte the first are recorded. A new record takes the place of
    those of other texts. Without a folder nothing is kept.
    """
    chosen = _fitting(texts, model, passes)
    path = None if folder is None or not chosen else folder / _name(chosen, base_hash)
    cached = None if path is None else cache.load(path)
    kept = None if cached is None else Predictions(cached["states"], cached["entropy"])
    if kept is None and chosen:
        with torch.no_grad(), entered() as reference:
            kept = _predicted(reference, chosen, passes)
        if path is not None:
            cache.save(path, {"states": kept.states, "entropy": kept.entropy}, PREFIX)
    nothing = Predictions(torch.empty(0, 0), torch.empty(0))
    return Reference(model, entered, kept or nothing, _laid_out(chosen), passes)


def _predicted(model: Any, texts: Sequence[Encoded], passes: Passes) -> Predictions:
    """The model's predictions on texts, in the order in which `_fitting` leaves them."""
    with_prefix, others = passes.parted(texts, lambda one: one)
    found = [
        one for part in passes.groups(others, length) for one in _predict(model, part, passes, None)
    ]
    if with_prefix:
        prefix = read(decoder(model), passes.prefix, passes.device)
        for part in passes.groups(with_prefix, lambda one: length(one) - len(passes.prefix)):
            found += _predict(model, part, passes, prefix)
    return Predictions.joined(found)


def _key(text: Encoded) -> tuple[tuple[int, ...], int]:
    return text.ids, text.start


def _fitting(texts: Sequence[Encoded], model: Any, passes: Passes) -> list[Encoded]:
    """As many as may be recorded, in the order in which they are passed through the base."""
    each = int(model.config.hidden_size) * model.dtype.itemsize
    ends = accumulate((len(text.ids) - text.start) * each for text in texts)
    chosen = [text for text, end in zip(texts, ends, strict=True) if end <= MOST_BYTES]
    with_prefix, others = passes.parted(sorted(chosen, key=length), lambda one: one)
    return [*others, *with_prefix]


def _laid_out(texts: Sequence[Encoded]) -> dict[tuple[tuple[int, ...], int], slice]:
    ends = accumulate((len(text.ids) - text.start for text in texts), initial=0)
    return {
        _key(text): slice(first, end)
        for text, (first, end) in zip(texts, pairwise(ends), strict=True)
    }


def _predict(
    model: Any, texts: Sequence[Encoded], passes: Passes, prefix: ReadPrefix | None
) -> list[Predictions]:
    """The model's predictions on texts, half of them at a time where the memory is too small."""
    try:
        rest = texts if prefix is None else [without(one, passes.prefix) for one in texts]
        states, _ = learnt_states(model, passes.batch(rest), prefix)
        return [Predictions(states.cpu(), head(model).entropy(states).cpu())]
    except torch.OutOfMemoryError:
        if len(texts) == 1:
            raise
        torch.cuda.empty_cache()
    half = len(texts) // 2
    halves = (texts[:half], texts[half:])
    return [one for part in halves for one in _predict(model, part, passes, prefix)]


def _name(texts: Sequence[Encoded], base_hash: str) -> str:
    digest = hashlib.sha256(f"{FORMAT} {base_hash}".encode())
    for text in texts:
        digest.update(f"{text.start} {text.ids}".encode())
    return f"{PREFIX}{digest.hexdigest()[:16]}.safetensors"
