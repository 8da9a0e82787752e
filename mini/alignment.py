"""Questions that mean the same are to look the same inside: pairs of paraphrases, and their
loss."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from mini import names, world
from mini.corpus import Encoder
from mini.tokenizer import ASSISTANT, USER
from mini.world import Form, Invented

LENGTH: Final = 28
_RELATIONS: Final = 4
_TEMPERATURE: Final = 0.1
_ODD: Final = 0.25
_OWN: Final = 0.35


@dataclass(frozen=True)
class Pairs:
    """Right-padded prompts (2n, LENGTH), row i asking what row n + i asks; `last` (2n,) is where
    each prompt ends, which is where its answer is decided.
    """

    tokens: NDArray[np.int64]
    last: NDArray[np.int64]


def pairs(tokenizer: Path, count: int, seed: int) -> Iterator[Pairs]:
    """Endless batches of `count` questions about fresh subjects, each in two paraphrases.

    Some subjects of a batch are asked about in several relations, and each relation is asked of
    several subjects, so that neither alone tells which two belong together.
    """
    encoder = Encoder(Tokenizer.from_file(str(tokenizer)))
    rng = random.Random(f"pairs:{seed}")
    kinds: dict[str, list[str]] = {}
    for relation in world.seen():
        kinds.setdefault(relation.subject, []).append(relation.name)
    while True:
        asked: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        while len(asked) < count:
            kind = rng.choices(list(kinds), [len(r) for r in kinds.values()])[0]
            odd = rng.random() < _ODD
            subject = encoder.random_words(rng) if odd else names.subject(kind, rng)
            for name in rng.sample(kinds[kind], min(_RELATIONS, len(kinds[kind]))):
                fact = Invented(name, subject, "")
                both = (_prompt(encoder, fact, rng), _prompt(encoder, fact, rng))
                if both[0] != both[1] and all(len(ids) <= LENGTH for ids in both):
                    asked[subject.casefold(), name] = both
        chosen = list(asked.values())[:count]
        yield _padded([a for a, _ in chosen] + [b for _, b in chosen])


def _prompt(encoder: Encoder, fact: Invented, rng: random.Random) -> list[int]:
    text = world.asked(fact, rng, _OWN)
    if text.form is Form.PLAIN:
        return encoder.ids(text.prompt)
    return [*encoder.ids(USER), *encoder.ids(text.prompt), *encoder.ids(ASSISTANT)]


def _padded(prompts: list[list[int]]) -> Pairs:
    tokens = np.zeros((len(prompts), LENGTH), np.int64)
    for row, ids in enumerate(prompts):
        tokens[row, : len(ids)] = ids
    return Pairs(tokens, np.array([len(ids) - 1 for ids in prompts], np.int64))


def loss(body: Callable[..., Any], batch: Pairs, device: torch.device) -> Tensor:
    """InfoNCE (van den Oord et al., arXiv 1807.03748) over inner states where prompts end, in nats.

    `body` is the decoder. Each paraphrase is to be nearer to its other paraphrase than to any other
    question of the batch, after each layer of `inner(layers)`.
    """
    tokens = torch.from_numpy(batch.tokens).to(device)
    last = torch.from_numpy(batch.last).to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        output = body(input_ids=tokens, use_cache=False, output_hidden_states=True)
    rows = torch.arange(len(last), device=device)
    half = len(last) // 2
    target = torch.cat([rows[half:], rows[:half]])
    total = torch.zeros((), device=device)
    chosen = inner(len(output.hidden_states) - 1)
    for layer in chosen:
        states = functional.normalize(output.hidden_states[layer][rows, last].float(), dim=-1)
        alike = (states @ states.mT / _TEMPERATURE).fill_diagonal_(-torch.inf)
        total = total + functional.cross_entropy(alike, target)
    return total / len(chosen)


def inner(layers: int) -> tuple[int, int]:
    """The layers after which two paraphrases are to look the same: half way and three quarters."""
    return layers // 2, 3 * layers // 4
