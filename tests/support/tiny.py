"""Tiny random models of three architectures, with a byte-level tokenizer and a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|eos|>", "<|end|>", "<|user|>", "<|assistant|>")


def tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte, four special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|eos|>",
        pad_token="<|eos|>",
        clean_up_tokenization_spaces=False,
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def config(kind: str = "llama", hidden: int = 32, layers: int = 2, intermediate: int = 64) -> Any:
    """A configuration of one of "llama", "mistral", "qwen2"."""
    shape: dict[str, Any] = {
        "vocab_size": 256 + len(SPECIAL),
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": [256, 257],
        "pad_token_id": 256,
        "initializer_range": 0.15,
    }
    classes = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
    return classes[kind](**shape)


def build(directory: Path, kind: str = "llama", seed: int = 0, **shape: int) -> Path:
    """Save a random model with its tokenizer and return the directory."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(kind, **shape))
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory
