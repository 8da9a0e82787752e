"""What learning costs, from shapes alone: FLOPs, bytes and seconds, on one GPU and on many.

What is assumed is a default argument. Seconds are estimates: nothing of this size has been run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from adapters import memory
from adapters.config import TrainConfig
from adapters.probe_size import FULL_SPECTRUM, PASS_BYTES, Shapes, directions, moment_bytes, need
from adapters.schedule import facts_in_step, steps_needed

BF16: Final = 2
FP32: Final = 4
MFU: Final = 0.4
"""Share of a GPU's peak that a LoRA step reaches: NeMo's 402 TFLOP/s on an H100."""
PASS_TOKENS: Final = 4096
HOST_GPUS: Final = 8
READ: Final = 2e9
"""Bytes a second from a disk, assumed."""


@dataclass(frozen=True, slots=True)
class Model:
    """Shapes of a model like Llama, Mistral or Qwen; norms and biases are left out."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool = False

    @staticmethod
    def of(config: Mapping[str, Any]) -> Model:
        """The model of a config.json with the keys of such models."""
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        return Model(
            name=config["model_type"],
            layers=config["num_hidden_layers"],
            hidden=hidden,
            intermediate=config["intermediate_size"],
            heads=heads,
            kv_heads=config["num_key_value_heads"],
            head_size=config.get("head_dim") or hidden // heads,
            vocabulary=config["vocab_size"],
            tied=config["tie_word_embeddings"],
        )

    @property
    def body(self) -> int:
        """Weights of the matrices that every token is multiplied with."""
        return self.layers * (self.attention + 3 * self.hidden * self.intermediate)

    @property
    def attention(self) -> int:
        """Weights of the attention of one layer."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        return self.hidden * (2 * queries + 2 * keys)

    @property
    def head(self) -> int:
        """Weights of the output matrix, which learnt tokens alone are multiplied with."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All weights, the embedding included."""
        return self.body + self.head * (1 if self.tied else 2)

    def trained(self, rank: int) -> int:
        """Values of a LoRA of all MLP matrices."""
        return self.layers * 3 * rank * (self.hidden + self.intermediate)

    @property
    def shapes(self) -> Shapes:
        """What the probe's sizes follow from."""
        return Shapes(self.layers, self.hidden, self.intermediate)


@dataclass(frozen=True, slots=True)
class GPU:
    """One GPU: dense bf16 and fp64 FLOP/s, bytes, and bytes a second of memory and links."""

    name: str
    flops: float
    double: float
    memory: float
    bandwidth: float
    link: float
    """To the others of its host, in one direction."""
    network: float
    """To other hosts, in one direction."""


LLAMA_8B: Final = Model("Llama 3.1 8B", 32, 4096, 14336, 32, 8, 128, 128256)
LLAMA_70B: Final = Model("Llama 3.1 70B", 80, 8192, 28672, 64, 8, 128, 128256)
MISTRAL_7B: Final = Model("Mistral 7B v0.3", 32, 4096, 14336, 32, 8, 128, 32768)
QWEN_7B: Final = Model("Qwen 2.5 7B", 28, 3584, 18944, 28, 4, 128, 152064)
SMOL: Final = Model("SmolLM2-135M", 30, 576, 1536, 9, 3, 64, 49152, tied=True)

H100: Final = GPU("H100", 989e12, 67e12, 80e9, 3.35e12, 450e9, 50e9)
H200: Final = GPU("H200", 989e12, 67e12, 141e9, 4.8e12, 450e9, 50e9)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean tokens of a text: of a fact or known fact, of a trace, and how many are learnt.

    `prefix` is the chat template's constant prefix, which is read once in a step.
    """

    short: int = 45
    trace: int = 150
    learnt_short: int = 8
    learnt_trace: int = 100
    prefix: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What one step reads: texts, their tokens, those that pass through the model, and the learnt
    tokens of facts and of the KL terms."""

    texts: int
    tokens: int
    read: int
    learnt: int
    compared: int


def step_of(
    config: TrainConfig,
    facts: int,
    replayed: int,
    traces: int = 1000,
    lengths: Lengths | None = None,
) -> Step:
    """A step of a plan: `traces` are the reasoning traces in the pool, of which few are read."""
    mean = lengths or Lengths()
    new = facts_in_step(config, facts) + min(config.replayed_per_step, math.ceil(replayed / 2))
    short, long = new + config.known_per_step, min(config.reasoning_per_step, traces // 80)
    tokens = short * mean.short + long * mean.trace
    shared = mean.prefix * max(short + long - 1, 0)
    compared = config.known_per_step * mean.learnt_short + long * mean.learnt_trace
    return Step(short + long, tokens, tokens - shared, new * mean.learnt_short, compared)


def step_flops(model: Model, step: Step, rank: int, *, length: int = 45) -> float:
    """FLOPs of a step: forward, and backward to the inputs of every matrix but not to its weights.

    A frozen weight costs 4 a token, of the first layer 2 where nothing before it is trained; a
    factor of the adapter 6. The output matrix is multiplied with learnt tokens alone, once more
    with the base's states of the KL terms. Attention sees half of a text's `length` on average.
    """
    untrained = model.attention + 2 * model.hidden * model.intermediate
    body = (4.0 * model.body - 2.0 * untrained) * step.read
    factors = 6.0 * model.trained(rank) * step.read
    head = model.head * (4.0 * (step.learnt + step.compared) + 2.0 * step.compared)
    width = model.layers * model.heads * model.head_size
    attention = 3 * 2 * 2 * (length / 2) * width * step.read
    return body + factors + head + attention


def projection_flops(model: Model, rank: int, share: float) -> float:
    """FLOPs of the protection, once a step however many tokens it has: A − (A Q) Qᵀ, and back."""
    kept = sum(
        n * directions(n, share) * uses for n, uses in zip(model.shapes.inputs, (2, 1), strict=True)
    )
    return float(model.layers * 2 * 4 * rank * kept)


def copies(
    model: Model, gpu: GPU, gpus: int, *, rank: int = 128, share: float = 0.2, room: float = 0.8
) -> int:
    """How many copies of what training holds the GPUs have room for; 0 where it is not even one.

    The base, the protection and the factors with gradients and optimiser, as `adapters.memory` has
    them; `room` is the share of the memory that these may take beside activations.
    """
    queries, keys = model.heads * model.head_size, model.kv_heads * model.head_size
    sizes = memory.Model(
        model.shapes, model.vocabulary, queries, keys, model.heads, model.tied, biases=False
    )
    parts = memory.on_device(sizes, memory.Training(rank, "cuda", share=share))
    held = parts.base + parts.protection + parts.factors
    return gpus // math.ceil(held / (room * gpu.memory))


def fewest(model: Model, gpu: GPU) -> int:
    """The fewest GPUs that have room for training the model."""
    return next(gpus for gpus in range(1, 1025) if copies(model, gpu, gpus))


def step_seconds(
    model: Model, gpu: GPU, step: Step, rank: int, *, gpus: int = 1, mfu: float = MFU
) -> float:
    """Seconds of a step whose texts are divided among `gpus`; infinite where the base has no room.

    Products at `mfu` of the peak; each pass reads all weights at least twice from memory, or over
    the links where a copy is spread over several GPUs; gradients are summed over all GPUs. What
    moves beside products is taken to overlap with them, the sum of gradients is not.
    """
    held = copies(model, gpu, gpus)
    if held == 0:
        return math.inf
    computed = step_flops(model, step, rank) / (gpus * gpu.flops * mfu)
    passes = math.ceil(step.read / gpus / PASS_TOKENS)
    moved = 2.0 * passes * BF16 * model.parameters / gpu.bandwidth
    if held < gpus:
        moved = 2.0 * passes * BF16 * model.parameters / _slowest(gpu, gpus // held)
    summed = 2.0 * (gpus - 1) / gpus * FP32 * model.trained(rank) / _slowest(gpu, gpus)
    return max(computed, moved) + summed


def _slowest(gpu: GPU, gpus: int) -> float:
    return gpu.link if gpus <= HOST_GPUS else gpu.network


@dataclass(frozen=True, slots=True)
class Batch:
    """A plan from request to published adapter."""

    steps: int
    tokens: int
    flops: float
    seconds: float
    """All of it."""
    fixed: float
    """Of these, what takes no longer with more steps."""


def batch_of(
    model: Model,
    gpu: GPU,
    facts: int,
    replayed: int = 0,
    *,
    gpus: int = 1,
    rank: int = 128,
    mfu: float = MFU,
    lengths: Lengths | None = None,
) -> Batch:
    """A plan at the product's settings, without an early end.

    Fixed: the base read from disk twice, and the adapter written twice.
    """
    config = TrainConfig().resolved("cuda", facts)
    step, steps = (
        step_of(config, facts, replayed, lengths=lengths),
        steps_needed(config, facts, replayed),
    )
    fixed = 2 * (BF16 * model.parameters + FP32 * model.trained(rank)) / READ
    taken = steps * step_seconds(model, gpu, step, rank, gpus=gpus, mfu=mfu)
    flops = steps * step_flops(model, step, rank)
    return Batch(steps, steps * step.tokens, flops, taken + fixed, fixed)


@dataclass(frozen=True, slots=True)
class ProbeCost:
    """A probe of moments alone, fitted once for each base."""

    passes: int
    flops: float
    seconds: float
    disk: int


def probe_of(
    model: Model, gpu: GPU, *, tokens: int = 150_000, share: float = 0.2, mfu: float = MFU
) -> ProbeCost:
    """A complete decomposition in fp64 is taken as 10 n³, at a tenth of the fp64 peak."""
    inputs = model.shapes.inputs
    passes = _passes(model)
    # Each pass ends at the last layer that it needs: half of the depth on average.
    forward = 2.0 * model.body * tokens * (passes + 1) / 2
    outer = 2.0 * model.layers * tokens * sum(n * n for n in inputs)
    decomposed = model.layers * sum(_decomposition(n, directions(n, share)) for n in inputs)
    seconds = (
        forward / (gpu.flops * mfu) + outer / (gpu.double * mfu) + decomposed / (gpu.double / 10)
    )
    stored = need(model.shapes, share, svf=False).disk
    return ProbeCost(passes, forward + outer + decomposed, seconds, stored)


def _passes(model: Model) -> int:
    """Moments follow each other as their matrices do; a pass takes as many as have room."""
    count, gathered = 1, 0
    for size in map(moment_bytes, model.shapes.inputs * model.layers):
        if gathered and gathered + size > PASS_BYTES:
            count, gathered = count + 1, 0
        gathered += size
    return count


def _decomposition(inputs: int, kept: int) -> float:
    if inputs <= FULL_SPECTRUM:
        return 10.0 * inputs**3
    return 6 * 2 * inputs**2 * 1.1 * kept + 5 * 4 * inputs * (1.1 * kept) ** 2


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions of a verdict to one model, and mean tokens of a question and of an answer."""

    questions: int
    prompt: int
    answer: int


REASONING: Final = Asked(800, 120, 150)
"""Problems like GSM8K's: what the gate asks of a harmless candidate at a margin of 2 pp."""
SHORT: Final = Asked(400, 45, 12)
"""New, earlier and known facts."""


def gate_seconds(
    model: Model,
    gpu: GPU,
    *,
    models: int = 2,
    concurrency: int = 96,
    gpus: int = 1,
    overhead: float = 2.0,
    mfu: float = MFU,
) -> float:
    """Seconds in which `models` (candidate and live; the base has answered before) are asked.

    A round of decoding takes what reading the weights takes, or the products of `concurrency`
    tokens if that is more; `overhead` stands for the cache, LoRA's kernels and sampling.
    """
    weights = BF16 * model.parameters / gpu.bandwidth
    products = 2.0 * model.parameters / (gpu.flops * mfu)
    total = 0.0
    for asked in (REASONING, SHORT):
        rounds = math.ceil(models * asked.questions / (concurrency * gpus)) * asked.answer
        total += overhead * rounds * max(weights, products * concurrency)
        total += models * asked.questions * asked.prompt * products / gpus
    return total
