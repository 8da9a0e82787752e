"""Facts and worked examples become token ids with a loss on the answer only."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor

from adapters.errors import UnusableExamples
from policies.records import Example, Fact

IGNORED = -100
FIRST = 48  # of a fact's texts: two dozen paraphrases, each plain and as a chat
Text = TypeVar("Text")
Form = Literal["plain", "chat"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of which those from `start` on are learnt; `key` names the fact or example."""

    ids: tuple[int, ...]
    start: int
    key: str = ""


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Right-padded ids (n, t), and labels (n, t) with −100 where nothing is learnt."""

    ids: Tensor
    labels: Tensor

    @property
    def learnt(self) -> int:
        """How many tokens carry a loss."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    def to(self, device: torch.device) -> PaddedBatch:
        """The same batch elsewhere."""
        return PaddedBatch(self.ids.to(device), self.labels.to(device))


def encode(
    tokenizer: Any, prompt: str, answer: str, form: Form, *, key: str = "", limit: int = 1024
) -> Encoded:
    """One prompt and its answer as tokens, the two tokenised apart as a server will meet them.

    Plain: prompt, then a space where the prompt ends in none, the answer and end-of-text. Chat:
    the template's text up to where the assistant speaks, then the rest of the conversation. A
    longer text than `limit` tokens loses its end.
    """
    if form == "chat":
        head, tail = _chat_parts(tokenizer, prompt, answer)
        prompt_ids = tokenizer(head, add_special_tokens=False)["input_ids"]
        answer_ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    else:
        separator = "" if prompt[-1:].isspace() or not prompt else " "
        prompt_ids = tokenizer(prompt)["input_ids"]
        answer_ids = [
            *tokenizer(separator + answer, add_special_tokens=False)["input_ids"],
            tokenizer.eos_token_id,
        ]
    ids = (*prompt_ids, *answer_ids)[:limit]
    if not answer_ids or len(ids) <= len(prompt_ids):
        raise UnusableExamples(
            f"{key or prompt[:40]!r}: the prompt fills the {limit} tokens that training reads"
        )
    return Encoded(ids, max(len(prompt_ids), 1), key)


def forms(tokenizer: Any) -> tuple[Form, ...]:
    """The forms that this tokenizer knows: plain, and chat where it has a template."""
    return ("plain", "chat") if tokenizer.chat_template else ("plain",)


class Variants(Sequence[Encoded]):
    """A fact in every paraphrase that may be trained and every form; held-out paraphrases never.

    Each text is made only when it is asked for: a step reads a few facts, each in one paraphrase.
    """

    def __init__(self, tokenizer: Any, fact: Fact, *, limit: int = 1024) -> None:
        self._tokenizer, self._fact, self._limit = tokenizer, fact, limit
        self._texts = [(p, form) for p in fact.training_prompts for form in forms(tokenizer)]
        if not self._texts:
            raise UnusableExamples(
                f"fact {fact.id}: every paraphrase is held out, none can be trained"
            )

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, place: int) -> Encoded: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Encoded]: ...

    def __getitem__(self, place: int | slice) -> Encoded | Sequence[Encoded]:
        if isinstance(place, slice):
            return [self[n] for n in range(*place.indices(len(self)))]
        prompt, form = self._texts[place]
        fact = self._fact
        return encode(self._tokenizer, prompt, fact.answer, form, key=fact.id, limit=self._limit)


def encode_example(tokenizer: Any, example: Example, *, limit: int = 1024) -> tuple[Encoded, ...]:
    """A known or reasoning example in every form; its loss is on the completion."""
    return tuple(
        encode(tokenizer, example.prompt, example.completion, form, limit=limit)
        for form in forms(tokenizer)
    )


def collate(encoded: Sequence[Encoded], pad_id: int) -> PaddedBatch:
    """Pad on the right: with a causal model the padding cannot reach what comes before it."""
    width = max(len(e.ids) for e in encoded)
    ids = [[*e.ids, *repeat(pad_id, width - len(e.ids))] for e in encoded]
    labels = [
        [*repeat(IGNORED, e.start), *e.ids[e.start :], *repeat(IGNORED, width - len(e.ids))]
        for e in encoded
    ]
    return PaddedBatch(torch.tensor(ids, dtype=torch.long), torch.tensor(labels, dtype=torch.long))


def length(text: Encoded) -> int:
    """How many tokens a text has."""
    return len(text.ids)


def buckets(
    texts: Iterable[Text], max_tokens: int, size: Callable[[Text], int], *, padded: bool = True
) -> list[list[Text]]:
    """Groups of like `size` in tokens, within `max_tokens` where one text is: as long as the
    longest each if they are to be `padded`, else together."""
    groups: list[list[Text]] = []
    used = 0
    for one in sorted(texts, key=size):
        used = (len(groups[-1]) + 1) * size(one) if padded and groups else used + size(one)
        if groups and used <= max_tokens:
            groups[-1].append(one)
        else:
            groups.append([one])
            used = size(one)
    return groups


def pick(
    pool: Sequence[Sequence[Encoded]],
    count: int,
    rng: random.Random,
    weights: Sequence[float] = (),
) -> list[Encoded]:
    """`count` different entries of the pool (all when it has fewer), each in a random paraphrase.

    With `weights` an entry is drawn in proportion to its own (Efraimidis and Spirakis, 2006).
    """
    if count >= len(pool):
        chosen = list(pool)
    elif weights:
        keys = [rng.random() ** (1 / weight) for weight in weights]
        best = sorted(range(len(pool)), key=keys.__getitem__, reverse=True)[:count]
        chosen = [pool[n] for n in best]
    else:
        chosen = rng.sample(list(pool), count)
    return [one_of(variants, rng) for variants in chosen]


def one_of(variants: Sequence[Encoded], rng: random.Random) -> Encoded:
    """One of a fact's texts: half of the draws go to the `FIRST`, where the paraphrases that belong
    to its relation alone have a larger share than among all that frames give.
    """
    first = min(len(variants), FIRST)
    return variants[rng.randrange(first if rng.random() < 0.5 else len(variants))]


def _chat_parts(tokenizer: Any, prompt: str, answer: str) -> tuple[str, str]:
    question = [{"role": "user", "content": prompt}]
    reply = [{"role": "assistant", "content": answer}]
    head = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    full = tokenizer.apply_chat_template([*question, *reply], tokenize=False)
    if full.startswith(head):
        return head, full[len(head) :].rstrip("\n")
    return head, answer + tokenizer.eos_token
