"""What training an adapter takes of memory, by part: from a model's shapes, without torch.

The sizes follow the code that allocates; tests compare each part, and the whole, with what a run
allocates. Weights are in bf16 on a GPU and in fp32 on a CPU, factors and their optimiser in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from adapters.config import TrainConfig
from adapters.probe_size import (
    DENSE_INPUTS,
    DOUBLE,
    HALF,
    SINGLE,
    STORED_WHOLE,
    Shapes,
    directions,
    map_bytes,
)

Device = Literal["cpu", "cuda"]

COUNTED: Final = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
)
"""What a config.json must say."""

CPU_TOKENS: Final = 512
GPU_TOKENS: Final = 4096
RECORDED_BYTES: Final = 1 << 30
"""Of the base's hidden states on replayed texts, at most."""
CHUNK_BYTES: Final = 32 << 20
"""Logits in fp32 that exist at once."""
CHUNKS: Final = 3
"""How often a chunk is held: the model's logits, and the softmax of these and of the base's."""


@dataclass(frozen=True, slots=True)
class Model:
    """Of a config.json what memory is counted by."""

    shapes: Shapes
    vocabulary: int
    query: int
    """Width of all attention heads together, …"""
    key: int
    """… and of the heads of the keys, or of the values."""
    heads: int
    tied: bool
    """Whether the output matrix is the embedding."""
    biases: bool
    """Whether query, key and value have biases."""

    @staticmethod
    def of(config: Mapping[str, Any]) -> Model | None:
        """The model of a config.json, or None where that lacks what is counted."""
        shapes = Shapes.of(config)
        vocabulary, heads = config.get("vocab_size"), config.get("num_attention_heads")
        if shapes is None or not isinstance(vocabulary, int) or not isinstance(heads, int):
            return None
        size = config.get("head_dim") or shapes.hidden // heads
        return Model(
            shapes=shapes,
            vocabulary=vocabulary,
            query=heads * size,
            key=(config.get("num_key_value_heads") or heads) * size,
            heads=heads,
            tied=bool(config.get("tie_word_embeddings")),
            biases=config.get("model_type") == "qwen2" or bool(config.get("attention_bias")),
        )

    @property
    def of_layer(self) -> int:
        """Weights of the matrices of one layer."""
        hidden = self.shapes.hidden
        return 2 * hidden * (self.query + self.key) + 3 * hidden * self.shapes.intermediate

    @property
    def parameters(self) -> int:
        """All of them."""
        hidden, layers = self.shapes.hidden, self.shapes.layers
        small = 2 * hidden + (self.query + 2 * self.key if self.biases else 0)
        embeddings = (1 if self.tied else 2) * self.vocabulary * hidden
        return embeddings + layers * (self.of_layer + small) + hidden


@dataclass(frozen=True, slots=True)
class Training:
    """How an adapter is trained, as far as memory depends on it."""

    rank: int
    device: Device
    share: float = 0.0
    """Protected share of each matrix's input directions; 0: nothing is protected."""
    soft: bool = False
    """Whether they shrink, by a map (n, n) for each matrix, instead of being removed."""
    frozen: int = 0
    """Rank of the earlier adapters of a stack."""
    tokens: int = 0
    """Of one pass; 0: as many as suit the device."""
    rounded: bool = False
    """Whether a CPU multiplies in bf16 (`adapters.precision`)."""

    @property
    def precision(self) -> int:
        """Bytes of a weight of the base."""
        return HALF if self.device == "cuda" else SINGLE

    @property
    def products(self) -> int:
        """Bytes of what a product of matrices gives."""
        return HALF if self.rounded else self.precision

    @property
    def in_pass(self) -> int:
        """Tokens of one pass."""
        return self.tokens or pass_tokens(TrainConfig(), self.device)


@dataclass(frozen=True, slots=True)
class Parts:
    """Bytes of one memory, by what takes them at the peak of a step."""

    base: int = 0
    factors: int = 0
    """The factors, what passes share of them, gradients, and the optimiser's two moments."""
    protection: int = 0
    """The bases of what is protected, or the maps that are made of them."""
    recorded: int = 0
    """The base's hidden states on replayed texts, at most."""
    activations: int = 0
    logits: int = 0

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.by_name.values())

    @property
    def by_name(self) -> dict[str, int]:
        """Bytes by the name of the part."""
        return {one.name: int(getattr(self, one.name)) for one in fields(self)}


def pass_tokens(config: TrainConfig, device: str) -> int:
    """Tokens of one forward pass: as configured, or as suits the device."""
    return config.max_tokens or (CPU_TOKENS if device == "cpu" else GPU_TOKENS)


def longest() -> int:
    """Tokens of the longest text that is trained: what a pass holds at least."""
    return TrainConfig().max_length


def on_device(model: Model, how: Training) -> Parts:
    """What a step takes at its peak on the device that trains."""
    own = how.device == "cpu"
    return Parts(
        base=how.precision * model.parameters,
        factors=_factors(model, how) + (host_factors(model, how) if own else 0),
        protection=_protection(model, how) + (_held(model, how) if own else 0),
        recorded=RECORDED_BYTES if own else 0,
        activations=_activations(model, how),
        logits=_logits(model, how),
    )


def on_host(model: Model, how: Training) -> Parts:
    """What a run on a GPU takes of the host's memory beside that; nothing more on a CPU."""
    if how.device == "cpu":
        return Parts()
    return Parts(
        factors=host_factors(model, how),
        protection=_held(model, how) + _host_bases(model, how),
        recorded=RECORDED_BYTES,
    )


def adapter_size(model: Model, rank: int) -> int:
    """Numbers in the factors of an adapter."""
    shapes = model.shapes
    return shapes.layers * sum(rank * (high + wide) for high, wide in shapes.matrices.values())


def host_factors(model: Model, how: Training) -> int:
    """The copy of the factors as they were at the start."""
    return SINGLE * adapter_size(model, how.rank)


def dense_update_pays(tokens: int, rank: int, wide: int, high: int) -> bool:
    """Whether one product with W + ΔW (high, wide) and one of its gradient cost less than those of
    the factors, for so many tokens.

    In multiplications: through the factors 3 r (in + out) a token; of the whole matrix's gradient
    in · out a token, and once 3 r · in · out between it and the factors.
    """
    return tokens * (3 * rank * (wide + high) - wide * high) > 3 * rank * wide * high


def _factors(model: Model, how: Training) -> int:
    """Factors, two moments, the projected factors of all passes of a step and their gradients; the
    factors' own gradients come when the passes are over.

    On a CPU, of a matrix that is narrow for its rank, the sum W + ΔW and its gradient as well.
    """
    held = 5 * SINGLE * adapter_size(model, how.rank)
    frozen = SINGLE * adapter_size(model, how.frozen)
    if how.device == "cuda" or how.frozen:
        return held + frozen
    whole = sum(
        3 * SINGLE * high * wide
        for high, wide in model.shapes.matrices.values()
        if dense_update_pays(32 * how.in_pass, how.rank, wide, high)
    )
    return held + model.shapes.layers * whole


def _protection(model: Model, how: Training) -> int:
    """The maps that factors pass through. Gate and up share that of their input, unless soft."""
    if not how.share:
        return 0
    each = sum(_map_bytes(n, how) for n in model.shapes.inputs)
    if how.soft:
        each += _map_bytes(model.shapes.hidden, how)
    return model.shapes.layers * each


def _map_bytes(inputs: int, how: Training) -> int:
    if how.soft:
        return SINGLE * inputs * inputs
    return map_bytes(inputs, how.share, how.precision)


def _held(model: Model, how: Training) -> int:
    """What the host holds besides: of small inputs all eigenvectors, of soft maps their fp64."""
    if not how.share:
        return 0
    small = sum(DOUBLE * n * n for n in model.shapes.inputs if n <= STORED_WHOLE)
    maps = DOUBLE * (2 * model.shapes.hidden**2 + model.shapes.intermediate**2) if how.soft else 0
    return model.shapes.layers * (small + maps)


def _host_bases(model: Model, how: Training) -> int:
    wide = (n for n in model.shapes.inputs if n > DENSE_INPUTS)
    return model.shapes.layers * sum(SINGLE * n * directions(n, how.share) for n in wide)


def _logits(model: Model, how: Training) -> int:
    """Chunks of logits; the states of learnt tokens (all, at most), of the base too, and their
    gradients; the output matrix in bf16, where products are but it is not.
    """
    chunk = min(CHUNK_BYTES, SINGLE * how.in_pass * model.vocabulary)
    states = 3 * how.precision * how.in_pass * model.shapes.hidden
    rounded = HALF * model.vocabulary * model.shapes.hidden if how.rounded else 0
    return CHUNKS * chunk + states + rounded


def _activations(model: Model, how: Training) -> int:
    """What a forward pass leaves for the backward pass, and the work space at its end.

    Counted for a layer and token, as torch, transformers and PEFT save it, nothing but LoRA being
    trained: of both norms their input in fp32; of attention query, key, value, output and a
    normaliser for each head; the MLP's input, the outputs of gate and up, their product and the
    activation in it; of each matrix the r numbers between the factors. What follows the last layer
    exists once.
    """
    hidden, wide, layers = model.shapes.hidden, model.shapes.intermediate, model.shapes.layers
    size, attention = how.products, SINGLE if how.rounded else how.products
    # A second adapter makes PEFT copy the inputs in fp32; autocast rounds them for each matrix.
    inputs = size * (2 if how.rounded else 1) * hidden
    product = size * wide
    if how.frozen and how.device == "cuda":
        inputs, product = 2 * SINGLE * hidden, SINGLE * wide
    each = (
        2 * SINGLE * (hidden + 1)
        + attention * 2 * (model.query + model.key)
        + SINGLE * model.heads
        + inputs
        + 3 * size * wide
        + product
        + 3 * (SINGLE if how.frozen else size) * how.rank
    )
    after = (2 * SINGLE + size) * hidden
    # Where products are in less precision than what they are of, copies of that are kept too.
    copies = layers * model.of_layer if how.rounded else 0
    if how.products == HALF:
        copies += adapter_size(model, how.rank)
    return how.in_pass * (layers * each + after) + HALF * copies
