"""The byte-level tokenizer of palorad-mini and its chat template."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

from mini import names, reasoning, splits, world

END: Final = "<|end|>"
PAD: Final = "<|pad|>"
USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"
SYSTEM: Final = "<|system|>"
SPECIAL: Final = (END, PAD, USER, ASSISTANT, SYSTEM)
SIZE: Final = 1536

# Digits stand alone, so that a number is read place by place; a blank joins the word after it.
_PIECES: Final = r"'[a-z]{1,2}\b| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# The answer follows a blank in the chat form too, so that its tokens are those of the plain form.
TEMPLATE: Final = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] | trim }}"
    "{% elif message['role'] == 'assistant' %}"
    "<|assistant|> {{ message['content'] | trim }}<|end|>"
    "{% else %}<|system|>{{ message['content'] | trim }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train(seed: int = 0, texts: int = 60_000) -> Tokenizer:
    """A byte-level BPE of `SIZE` entries learnt from seeded texts of every kind."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence(
        [Split(Regex(_PIECES), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(random.Random(seed), texts), trainer)
    return tokenizer


def _sample(rng: random.Random, count: int) -> Iterator[str]:
    problems = reasoning.problems(splits.Split.TRAIN, seed=1, shares=reasoning.WIDE)
    for _ in range(count):
        kind = rng.random()
        if kind < 0.1:
            made = next(problems)
            yield f"{made.prompt} {made.solution}"
        elif kind < 0.5:
            yield world.in_context(rng).prompt
        else:
            yield " " + names.answer(rng.choice(("person", "place", "title", "company")), rng)
            yield " " + rng.choice(names.vocabulary())


def save(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write the tokenizer so that `AutoTokenizer.from_pretrained` and vLLM load it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [USER, ASSISTANT, SYSTEM],
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", "utf-8")
