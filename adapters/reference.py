"""What the frozen reference says on the texts that are to stay as they are, found once and kept.

A training run holds known facts and solutions to the reference's own next-token distributions.
Those never change, so they are computed for all the texts at once, and kept for the next run:
of each learnt token the `TOP` likeliest, and all others as one outcome.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.examples import Encoded, buckets, collate
from adapters.losses import learnt_logits

TOP: Final = 32
FORMAT: Final = 1
PREFIX: Final = "reference-"


@dataclass(frozen=True, slots=True)
class Said:
    """Next-token distributions at m learnt tokens: `ids` (m, k) of the likeliest, `logs` (m, k + 1)
    their log-probabilities at a temperature, the last that of all other tokens together;
    `entropy` (m,) in nats at temperature 1, over all tokens.
    """

    ids: Tensor
    logs: Tensor
    entropy: Tensor

    @staticmethod
    def of(logits: Tensor, temperature: float) -> Said:
        """The distributions of logits (m, vocabulary)."""
        plain = F.log_softmax(logits, dim=-1)
        logs = F.log_softmax(logits / temperature, dim=-1)
        ids = logs.topk(min(TOP, logs.shape[-1] - 1), dim=-1).indices
        return Said(
            ids.int(), _narrowed(logs, ids).half(), -(plain.exp() * plain).sum(dim=-1).float()
        )

    @staticmethod
    def joined(parts: Sequence[Said]) -> Said:
        """All of them in a row."""
        if not parts:
            return Said(torch.empty((0, 1)).int(), torch.empty((0, 2)), torch.empty(0))
        every = ((s.ids, s.logs, s.entropy) for s in parts)
        return Said(*(torch.cat(one) for one in zip(*every, strict=True)))

    def divergence(self, logits: Tensor, temperature: float) -> Tensor:
        """KL(these ‖ softmax(logits / temperature)), summed over the m tokens, in nats."""
        before = self.logs.to(logits.device).float()
        now = _narrowed(F.log_softmax(logits / temperature, dim=-1), self.ids.to(logits.device))
        return F.kl_div(now, before, reduction="sum", log_target=True)


def _narrowed(logs: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities (m, k + 1): those of `ids` (m, k), then that of everything else."""
    index = ids.long()
    rest = logs.scatter(1, index, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([logs.gather(1, index), rest], dim=-1)


@dataclass(frozen=True)
class Recording:
    """What the reference says on many texts, each text's learnt tokens in a row."""

    said: Said
    rows: dict[tuple[tuple[int, ...], int], slice] = field(repr=False)

    @staticmethod
    def laid_out(said: Said, texts: Sequence[Encoded]) -> Recording:
        """`said` holds the learnt tokens of `texts`, one text after the other."""
        ends = list(accumulate((len(t.ids) - t.start for t in texts), initial=0))
        rows = {
            (text.ids, text.start): slice(first, end)
            for text, (first, end) in zip(texts, pairwise(ends), strict=True)
        }
        return Recording(said, rows)

    def of(self, texts: Sequence[Encoded]) -> Said | None:
        """What was said on these texts, in their order; None where one was not recorded."""
        found = [self.rows.get((t.ids, t.start)) for t in texts]
        if None in found:
            return None
        said = self.said
        return Said.joined(
            [Said(said.ids[r], said.logs[r], said.entropy[r]) for r in found if r is not None]
        )


@dataclass(frozen=True)
class Reference:
    """The frozen reference: `entered` turns the model that is trained into it for a while."""

    entered: Callable[[], AbstractContextManager[Any]]
    recording: Recording
    temperature: float
    pad: int
    device: torch.device

    def of(self, texts: Sequence[Encoded]) -> Said:
        """What it says on texts, from the record or now."""
        said = self.recording.of(texts)
        if said is None:
            with torch.no_grad(), self.entered() as model:
                batch = collate(texts, self.pad).to(self.device)
                said = Said.of(learnt_logits(model, batch)[0], self.temperature)
        return said

    def doubt(self, texts: Sequence[Encoded]) -> list[float]:
        """Entropy in nats of the next token, summed over each text's learnt tokens."""
        return [float(self.of([text]).entropy.sum()) for text in texts]


def record(
    entered: Callable[[], AbstractContextManager[Any]],
    texts: Sequence[Encoded],
    *,
    temperature: float,
    max_tokens: int,
    pad: int,
    device: torch.device,
    base_hash: str,
    folder: Path | None,
) -> Reference:
    """The reference with all of `texts` recorded, read from `folder` where they lie there already.

    A new record takes the place of those of other texts. Without a folder nothing is kept.
    """
    texts = sorted(texts, key=lambda text: (len(text.ids), text.ids, text.start))
    path = None if folder is None or not texts else folder / _name(texts, temperature, base_hash)
    said = None if path is None else _load(path)
    if said is None:
        with torch.no_grad(), entered() as model:
            asked = (
                one
                for part in buckets(texts, max_tokens)
                for one in _ask(model, part, temperature, pad, device)
            )
            said = Said.joined(list(asked))
        if path is not None:
            _save(path, said)
    return Reference(entered, Recording.laid_out(said, texts), temperature, pad, device)


def _ask(
    model: Any, texts: Sequence[Encoded], temperature: float, pad: int, device: torch.device
) -> list[Said]:
    """What the model says on texts, half of them at a time where the memory is too small."""
    try:
        batch = collate(texts, pad).to(device)
        said = Said.of(learnt_logits(model, batch)[0], temperature)
        return [Said(said.ids.cpu(), said.logs.cpu(), said.entropy.cpu())]
    except torch.OutOfMemoryError:
        if len(texts) == 1:
            raise
        torch.cuda.empty_cache()
    half = len(texts) // 2
    parts = (texts[:half], texts[half:])
    return [one for part in parts for one in _ask(model, part, temperature, pad, device)]


def _name(texts: Sequence[Encoded], temperature: float, base_hash: str) -> str:
    digest = hashlib.sha256(f"{FORMAT} {TOP} {temperature} {base_hash}".encode())
    for text in texts:
        digest.update(f"{text.start} {text.ids}".encode())
    return f"{PREFIX}{digest.hexdigest()[:16]}.safetensors"


def _load(path: Path) -> Said | None:
    try:
        found = load_file(path)
        return Said(found["ids"], found["logs"], found["entropy"])
    except (OSError, SafetensorError, KeyError):
        return None  # never written, or broken: found anew


def _save(path: Path, said: Said) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    save_file({"ids": said.ids, "logs": said.logs, "entropy": said.entropy}, temporary)
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.rename(path)
    for other in path.parent.glob(f"{PREFIX}*"):
        if other != path:
            other.unlink(missing_ok=True)
