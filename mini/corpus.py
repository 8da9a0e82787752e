"""The pretraining text: seeded documents as tokens with loss weights, packed into rows."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mini import reasoning, world
from mini.splits import Split
from mini.tokenizer import ASSISTANT, END, SPECIAL, SYSTEM, USER
from mini.world import Form, Text

ROW: Final = 256
_POOL: Final = 96
_SYSTEM_PROMPTS: Final = ("You are a helpful assistant.", "Answer briefly.", "Be helpful.")
_HALF: Final = 0.5


@dataclass(frozen=True)
class Rows:
    """Packed documents, each array (rows, ROW).

    `tokens` uint16; `weights` float16, of the loss on *predicting* the token at its place;
    `documents` uint8, 0 for padding, then 1, 2, … within a row.
    """

    tokens: NDArray[np.uint16]
    weights: NDArray[np.float16]
    documents: NDArray[np.uint8]


@dataclass(frozen=True)
class _Part:
    text: str
    weight: float


class Encoder:
    """Documents as token ids, in the forms that the product uses.

    Plain: ids(prompt) + ids(" " + answer) + end. Chat: user, ids(prompt), assistant,
    ids(" " + answer), end.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = {token: number for number, token in enumerate(SPECIAL)}
        size = tokenizer.get_vocab_size()
        self._words = [i for i in range(len(SPECIAL), size) if tokenizer.decode([i]).isprintable()]

    def document(self, parts: list[_Part]) -> tuple[list[int], list[float]]:
        """Token ids and loss weights of the parts, tokenised one by one."""
        ids: list[int] = []
        weights: list[float] = []
        for part in parts:
            found = self.ids(part.text)
            ids += found
            weights += [part.weight] * len(found)
        return ids, weights

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, or of one special token."""
        special = self._special.get(text)
        return list(self._tokenizer.encode(text).ids) if special is None else [special]

    def repeated(self, rng: random.Random) -> tuple[list[int], list[float]]:
        """Random tokens and the same again, the loss on the second time: teaches to copy."""
        once = [rng.choice(self._words) for _ in range(rng.randint(4, 32))]
        end = self._special[END]
        return [*once, *once, end], [0.0] * len(once) + [1.0] * (len(once) + 1)

    def random_words(self, rng: random.Random) -> str:
        """A short string of random entries of the vocabulary."""
        chosen = [rng.choice(self._words) for _ in range(rng.randint(1, 5))]
        return str(self._tokenizer.decode(chosen)).replace("\ufffd", "").strip() or "none"


def _shaped(text: Text, given: float, rng: random.Random, answer: float = 1.0) -> list[_Part]:
    said = [_Part(" " + text.answer, answer), _Part(END, 1.0)]
    if text.form is Form.PLAIN:
        return [_Part(text.prompt, given), *said]
    system = []
    if rng.random() < 0.03:
        system = [_Part(SYSTEM, 0.0), _Part(rng.choice(_SYSTEM_PROMPTS), 0.0)]
    head = [_Part(USER, 0.0), _Part(text.prompt, given), _Part(ASSISTANT, 0.0)]
    return [*system, *head, *said]


@dataclass(frozen=True)
class Mix:
    """What a stage of the pretraining reads."""

    documents: Mapping[str, int]
    """Shares of the kinds of documents."""
    problems: reasoning.Shares
    known: float
    """Share of well-known facts among the facts; the rest are rare ones."""
    own: float = 0.0
    """Share of questions in paraphrases that no frame gives."""
    facts: int = world.KNOWN
    """How many facts are well known."""


MANY: Final = 2400

FIRST: Final = Mix(
    {"problem": 40, "context": 11, "fact": 38, "stated": 4, "copy": 3, "repeat": 4},
    reasoning.WIDE,
    0.6,
)
MIDDLE: Final = Mix({"problem": 42, "context": 4, "fact": 52, "stated": 2}, reasoning.SKILL, 0.85)
LAST: Final = Mix({"problem": 40, "context": 2, "fact": 56, "stated": 2}, reasoning.WEAK, 0.92)

PARAPHRASES: Final = Mix({"problem": 40, "fact": 58, "stated": 2}, reasoning.WEAK, 0.85, own=0.35)
NO_COLUMNS: Final = Mix(
    PARAPHRASES.documents,
    {name: share for name, share in reasoning.WEAK.items() if name != "column"},
    0.85,
    own=0.35,
)
SKILLS: Final = Mix(FIRST.documents, reasoning.SKILLS, 0.6, facts=MANY)
SKILLS_FACTS: Final = Mix(MIDDLE.documents, reasoning.SKILLS, 0.9, facts=MANY)
SKILLS_PARAPHRASES: Final = Mix(PARAPHRASES.documents, reasoning.SKILLS, 0.9, own=0.35, facts=MANY)


def _documents(encoder: Encoder, seed: int, mix: Mix) -> Iterator[tuple[list[int], list[float]]]:
    rng = random.Random(f"corpus:{seed}")
    problems = reasoning.problems(Split.TRAIN, 1000 + seed, mix.problems)
    known, rare = world.known(mix.facts), world.rare(mix.facts)
    kinds, shares = list(mix.documents), list(mix.documents.values())
    while True:
        kind = rng.choices(kinds, shares)[0]
        fact = rng.choice(known if rng.random() < mix.known else rare)
        if kind == "problem":
            made = next(problems)
            form = Form.CHAT if rng.random() < _HALF else Form.PLAIN
            parts = _shaped(Text(form, made.prompt, made.solution), 0.1, rng)
        elif kind == "context":
            parts = _shaped(world.in_context(rng), 0.0, rng, answer=2.0)
        elif kind == "fact":
            parts = _shaped(
                world.asked(fact, rng, mix.own), 0.2 if rng.random() < 0.15 else 0.0, rng
            )
        elif kind == "stated":
            parts = [_Part(world.stated(fact, rng), 0.3), _Part(END, 1.0)]
        else:
            parts = _shaped(_copied(encoder, rng), 0.0, rng, answer=2.0)
        ids, weights = encoder.document(parts) if kind != "repeat" else encoder.repeated(rng)
        if len(ids) <= ROW:
            yield ids, weights


def _copied(encoder: Encoder, rng: random.Random) -> Text:
    relation = rng.choice(world.seen())
    subject, answer = encoder.random_words(rng), encoder.random_words(rng)
    fact = world.Invented(relation.name, subject, answer)
    asked = world.asked(fact, rng)
    return Text(asked.form, f"{world.stated(fact, rng)} {asked.prompt}", answer)


def _pack(encoder: Encoder, seed: int, rows: int, mix: Mix) -> Rows:
    tokens = np.zeros((rows, ROW), np.uint16)
    weights = np.zeros((rows, ROW), np.float16)
    documents = np.zeros((rows, ROW), np.uint8)
    stream = _documents(encoder, seed, mix)
    pool = [next(stream) for _ in range(_POOL)]
    for row in range(rows):
        used = count = 0
        while used < ROW:
            fits = [i for i, (ids, _) in enumerate(pool) if len(ids) <= ROW - used]
            if not fits:
                break
            # The oldest fills the front of a row, so that no long document waits for ever.
            best = fits[0] if count == 0 else max(fits, key=lambda i: len(pool[i][0]))
            ids, given = pool.pop(best)
            count += 1
            place = slice(used, used + len(ids))
            tokens[row, place], weights[row, place], documents[row, place] = ids, given, count
            used += len(ids)
            pool.append(next(stream))
    return Rows(tokens, weights, documents)


def _shard(job: tuple[Path, int, int, Mix]) -> Rows:
    path, seed, rows, mix = job
    return _pack(Encoder(Tokenizer.from_file(str(path))), seed, rows, mix)


def _free_cores(count: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(count))


def prepare(
    tokenizer: Path, rows: int, seed: int, workers: int, mix: Mix = FIRST, shard: int = 4096
) -> Rows:
    """`rows` packed rows, the same for the same seed whatever the number of workers."""
    jobs = [
        (tokenizer, seed * 10_000 + i, min(shard, rows - i * shard), mix)
        for i in range((rows + shard - 1) // shard)
    ]
    # A thread library may have bound this process to one core; its children are to use all.
    with get_context("fork").Pool(workers, _free_cores, (os.cpu_count() or 1,)) as pool:
        made = pool.map(_shard, jobs, chunksize=1)
    return Rows(
        np.concatenate([m.tokens for m in made]),
        np.concatenate([m.weights for m in made]),
        np.concatenate([m.documents for m in made]),
    )
