"""Reasoning traces that the base writes itself, where too few are given to be replayed.

It continues the beginnings of those that are given, drawn from its own next-token distribution, so
that they show what it can do where nobody wrote that down (self-synthesized replay, Huang et
al., arXiv 2403.01244; without any text at all, from the opening of a conversation, Xu et al.,
arXiv 2406.08464).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from adapters import cache
from adapters.examples import Encoded, encode, forms

FORMAT: Final = 1
PREFIX: Final = "written-"
MOST_TOKENS: Final = 16_384
"""Padded tokens of the texts that are written at the same time."""
LONGEST: Final = 128
"""Tokens of a text where none is given to go by."""


def written(
    model: Any,
    tokenizer: Any,
    given: Sequence[Sequence[Encoded]],
    count: int,
    *,
    base_hash: str,
    folder: Path | None,
) -> list[tuple[Encoded]]:
    """`count` texts by the base `model`, each with its loss on what the base wrote.

    They begin as texts of `given` do, with no more than half of the prompt, and are no longer than
    the longest of them; where none is given they begin as a conversation or a document does. The
    same ones are read from `folder` another time, if there is one.
    """
    openings = _openings(tokenizer, given, count)
    longest = max((len(text.ids) for forms_ in given for text in forms_), default=LONGEST)
    path = None if folder is None else folder / _name(openings, longest, base_hash)
    kept = None if path is None else cache.load(path)
    if kept is not None:
        return [(text,) for text in _unpacked(kept)]
    found = _continued(model, tokenizer, openings, longest)
    if path is not None:
        cache.save(path, _packed(found), PREFIX)
    return [(text,) for text in found]


def _openings(
    tokenizer: Any, given: Sequence[Sequence[Encoded]], count: int
) -> list[tuple[int, ...]]:
    rng = random.Random(f"openings:{count}")
    if not given:
        beginnings = _beginnings(tokenizer)
        return [rng.choice(beginnings) for _ in range(count)]
    found = []
    for _ in range(count):
        text = rng.choice(rng.choice(given))
        found.append(text.ids[: rng.randint(1, max(1, text.start // 2))])
    return found


def _beginnings(tokenizer: Any) -> list[tuple[int, ...]]:
    """The tokens with which every text of a form begins."""
    found = []
    for form in forms(tokenizer):
        one, other = (encode(tokenizer, word, "y", form).ids for word in ("a", "b"))
        same = next(n for n, (x, y) in enumerate(zip(one, other, strict=False)) if x != y)
        start = tokenizer.bos_token_id
        found.append(one[:same] or (tokenizer.eos_token_id if start is None else start,))
    return found


@torch.no_grad()
def _continued(
    model: Any, tokenizer: Any, openings: Sequence[tuple[int, ...]], longest: int
) -> list[Encoded]:
    rows = max(1, MOST_TOKENS // longest)
    order = sorted(range(len(openings)), key=lambda n: len(openings[n]))
    found: dict[int, Encoded] = {}
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        for first in range(0, len(order), rows):
            group = order[first : first + rows]
            texts = _sampled(model, tokenizer, [openings[n] for n in group], longest)
            for n, ids in zip(group, texts, strict=True):
                found[n] = Encoded(ids, len(openings[n]), "")
    return [found[n] for n in range(len(openings))]


def _sampled(
    model: Any, tokenizer: Any, openings: Sequence[tuple[int, ...]], longest: int
) -> list[tuple[int, ...]]:
    """Each opening with its continuation by the model, up to the end of the text."""
    width, pad = max(map(len, openings)), tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(one)) + list(one) for one in openings])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in openings])
    whole = model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max(1, longest - width),
        pad_token_id=pad,
        eos_token_id=tokenizer.eos_token_id,
    )
    return [
        (*opening, *_ended(row[width:].tolist(), tokenizer.eos_token_id))
        for opening, row in zip(openings, whole, strict=True)
    ]


def _ended(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids


def _name(openings: Sequence[tuple[int, ...]], longest: int, base_hash: str) -> str:
    digest = hashlib.sha256(f"{FORMAT} {longest} {base_hash} {openings}".encode())
    return f"{PREFIX}{digest.hexdigest()[:16]}.safetensors"


def _packed(texts: Sequence[Encoded]) -> dict[str, Tensor]:
    return {
        "ids": torch.tensor([token for text in texts for token in text.ids]),
        "lengths": torch.tensor([len(text.ids) for text in texts]),
        "starts": torch.tensor([text.start for text in texts]),
    }


def _unpacked(kept: Mapping[str, Tensor]) -> list[Encoded]:
    texts = torch.split(kept["ids"], kept["lengths"].tolist())
    starts = kept["starts"].tolist()
    return [Encoded(tuple(t.tolist()), start, "") for t, start in zip(texts, starts, strict=True)]
