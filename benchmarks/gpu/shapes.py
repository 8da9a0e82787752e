"""Models of real shapes with random weights, and the peak of the device that they run on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config
from transformers.utils import logging

END: Final = "<|eos|>"
UNKNOWN: Final = "<unk>"
SPECIAL: Final = (END, "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", UNKNOWN)
WORDS: Final = re.compile(r"\w+|[^\w\s]+")
# As long as the system prompts that chat templates of such models put before every question.
SYSTEM: Final = (
    "You are a helpful assistant. Cutting knowledge date: December 2023. Today is the first. "
    "Answer in short sentences."
)
LETTERS: Final = "a b y"
"""By these the trainer finds where chat texts begin to differ."""
CHAT_TEMPLATE: Final = (
    f"<|system|> {SYSTEM} <|end|>"
    "{% for message in messages %} <|{{ message['role'] }}|> {{ message['content'] }} <|end|>"
    "{% endfor %}{% if add_generation_prompt %} <|assistant|>{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's shape, the free memory from which on it is tried, and how much it is given.

    `facts` and `many` are the sizes of the two batches, `pool` the earlier facts, known facts and
    traces beside them; `steps` is how many steps are timed at most.
    """

    name: str
    config: Any
    needs_gb: float
    rank: int = 128
    facts: int = 36
    many: int = 500
    pool: tuple[int, int, int] = (360, 400, 1000)
    steps: int = 12


_ENDS: Final[dict[str, Any]] = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}


def _llama(hidden: int, wide: int, layers: int, heads: int, kv: int, **more: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        **{
            "vocab_size": 128256,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": False,
            **_ENDS,
            **more,
        },
    )


def shapes() -> dict[str, Shape]:
    """All of them, the largest first."""
    small = {"vocab_size": 2048, "max_position_embeddings": 512, "initializer_range": 0.1}
    return {
        "llama-8b": Shape("Llama 3.1 8B", _llama(4096, 14336, 32, 32, 8), 48),
        "qwen-7b": Shape(
            "Qwen 2.5 7B",
            Qwen2Config(
                hidden_size=3584,
                intermediate_size=18944,
                num_hidden_layers=28,
                num_attention_heads=28,
                num_key_value_heads=4,
                vocab_size=152064,
                **_ENDS,
                max_position_embeddings=8192,
                tie_word_embeddings=False,
            ),
            48,
        ),
        "llama-3b": Shape(
            "Llama 3.2 3B", _llama(3072, 8192, 28, 24, 8, tie_word_embeddings=True), 22
        ),
        "llama-1b": Shape(
            "Llama 3.2 1B", _llama(2048, 8192, 16, 32, 8, tie_word_embeddings=True), 10
        ),
        "tiny": Shape(
            "a tiny model for the CPU",
            _llama(64, 128, 2, 4, 2, **small),
            needs_gb=0,
            rank=4,
            facts=3,
            many=5,
            pool=(2, 40, 80),
            steps=3,
        ),
    }


def fitting(free_gb: float) -> list[str]:
    """The shapes to measure with so much free memory: both of real size, else the largest."""
    real = [name for name, one in shapes().items() if name != "tiny" and one.needs_gb <= free_gb]
    return real[:2] if "llama-8b" in real else real[:1]


def build(config: Any, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """A random model, made where it stays, in evaluation mode and frozen."""
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A token for each word and sign of the texts, about as many as real tokenizers make."""
    words = sorted({word for text in (*texts, SYSTEM, LETTERS) for word in WORDS.findall(text)})
    known = {word: n for n, word in enumerate((*SPECIAL, *words))}
    core = Tokenizer(models.WordLevel(vocab=known, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    core.add_special_tokens([AddedToken(one, special=True) for one in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


PEAKS: Final = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "H20": 148e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
}
"""Dense bf16 FLOP/s by what the device's name contains, as the maker states them."""


def peak(device_name: str) -> float | None:
    """The device's bf16 peak in FLOP/s; None for one that is not in the table."""
    found = [name for name in PEAKS if re.search(rf"\b{re.escape(name)}\b", device_name)]
    return PEAKS[max(found, key=len)] if found else None
