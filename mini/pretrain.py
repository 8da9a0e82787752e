"""Make palorad-mini: tokenizer, text and weights, from a seed alone."""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.masking_utils import sdpa_mask

from adapters.precision import multiplies_bf16
from mini import alignment, corpus, tokenizer
from mini.recipes import MODELS, MiniRecipe, Stage

FOLDERS: Final = Path("models")
_ALIGN: Final = 0.5
_NS: Final = (3.4445, -4.7750, 2.0315)
_SINGLE: Final = "single precision"


class Muon:
    """Momentum orthogonalised by Newton-Schulz, for matrices (K. Jordan, 2024).

    Matrices of one shape are orthogonalised together.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        self.lr, self._momentum = lr, momentum
        groups: dict[tuple[int, int], list[nn.Parameter]] = {}
        for matrix in matrices:
            rows, columns = matrix.shape
            groups.setdefault((rows, columns), []).append(matrix)
        self._groups = list(groups.values())
        self._moments = [torch.zeros(len(g), *g[0].shape, device=g[0].device) for g in self._groups]

    @torch.no_grad()
    def step(self) -> None:
        """Move every matrix by its orthogonalised momentum and forget the gradients."""
        for group, moment in zip(self._groups, self._moments, strict=True):
            gradient = torch.stack([_gradient(matrix) for matrix in group])
            moment.lerp_(gradient, 1 - self._momentum)
            update = _orthogonal(gradient.lerp_(moment, self._momentum))
            rows, columns = group[0].shape
            scale = self.lr * max(1.0, rows / columns) ** 0.5
            for matrix, change in zip(group, update, strict=True):
                matrix.add_(change, alpha=-scale)
                matrix.grad = None


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 products are computed as such: a processor that cannot is slow to emulate."""
    return device.type != "cpu" or multiplies_bf16()


def _gradient(matrix: nn.Parameter) -> Tensor:
    if matrix.grad is None:
        raise ValueError("a matrix without a gradient")
    return matrix.grad


def _orthogonal(batch: Tensor, steps: int = 5) -> Tensor:
    """The nearest orthogonal matrices, roughly: (n, rows, columns), in bf16 where that is fast."""
    a, b, c = _NS
    x = batch.bfloat16() if fast_bf16(batch.device) else batch
    wide = x.size(1) > x.size(2)
    x = x.mT if wide else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    orthogonal: Tensor = (x.mT if wide else x).float()
    return orthogonal


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,  # noqa: ANN401  # what transformers gives every attention
) -> tuple[Tensor, None]:
    """Causal attention in single precision: bf16's backward pass takes a processor twice as long.

    `query`, `key` and `value` are (batch, heads, length, size); the result is (batch, length,
    heads, size). Without a mask every token sees those before it.
    """
    with torch.autocast(query.device.type, enabled=False):
        heads = functional.scaled_dot_product_attention(
            query.float(),
            key.float(),
            value.float(),
            attn_mask=attention_mask,
            scale=options["scaling"],
            is_causal=attention_mask is None,
        )
    return heads.transpose(1, 2).contiguous().to(query.dtype), None


AttentionInterface.register(_SINGLE, _attend)
AttentionMaskInterface.register(_SINGLE, sdpa_mask)


def build(recipe: MiniRecipe, end: int, pad: int) -> LlamaForCausalLM:
    """The untrained model: fp32, tied embeddings."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=tokenizer.SIZE,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.hidden // recipe.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=end, pad_token_id=pad, max_new_tokens=160
    )
    return model


def _tensors(rows: corpus.Rows, device: torch.device) -> dict[str, Tensor]:
    """A batch as the model takes it: documents do not see each other, positions start anew."""
    documents = torch.from_numpy(rows.documents.astype(np.int64)).to(device)
    count, length = documents.shape
    places = torch.arange(length, device=device).expand(count, length)
    first = torch.ones_like(documents, dtype=torch.bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    start = torch.where(first, places, 0).cummax(dim=1).values
    same = documents[:, :, None] == documents[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return {
        "input_ids": torch.from_numpy(rows.tokens.astype(np.int64)).to(device),
        "position_ids": places - start,
        "attention_mask": (same & causal)[:, None],
    }


def loss(model: LlamaForCausalLM, body: Callable[..., Any], rows: corpus.Rows) -> Tensor:
    """Weighted mean next-token loss of packed rows, in nats."""
    device = model.lm_head.weight.device
    batch = _tensors(rows, device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast_bf16(device)):
        hidden = body(**batch, use_cache=False).last_hidden_state
    weights = torch.from_numpy(rows.weights[:, 1:].astype(np.float32)).to(device)
    # The first token of a document has weight only where it was given one; none follows it.
    begins = batch["position_ids"][:, 1:] == 0
    weights = weights.masked_fill(begins, 0.0).flatten()
    chosen = weights.nonzero().squeeze(1)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast_bf16(device)):
        logits = model.lm_head(hidden[:, :-1].flatten(0, 1)[chosen])
    targets = batch["input_ids"][:, 1:].flatten()[chosen]
    each = functional.cross_entropy(logits.float(), targets, reduction="none")
    return (each * weights[chosen]).sum() / weights.sum()


def train(
    model: LlamaForCausalLM,
    rows: corpus.Rows,
    recipe: MiniRecipe,
    stage: Stage,
    pairs: Iterator[alignment.Pairs],
    *,
    compiled: bool,
    say: Callable[[str], None],
) -> None:
    """Train `model` in place on `rows`, each row once, with a fresh optimiser."""
    if model.device.type == "cpu":
        model.set_attn_implementation(_SINGLE)
    body: Callable[..., Any] = torch.compile(model.model) if compiled else model.model
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = Muon(matrices, recipe.muon_lr)
    adam = torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    began = time.monotonic()
    for step in range(stage.steps):
        factor = stage.rate(step)
        muon.lr, adam.param_groups[0]["lr"] = recipe.muon_lr * factor, recipe.adam_lr * factor
        part = slice(step * recipe.rows, (step + 1) * recipe.rows)
        batch = corpus.Rows(rows.tokens[part], rows.weights[part], rows.documents[part])
        value = loss(model, body, batch)
        torch.autograd.backward(value)
        apart = torch.zeros(())
        if stage.aligned:
            apart = alignment.loss(model.model, next(pairs), model.lm_head.weight.device)
            torch.autograd.backward(_ALIGN * apart)
        muon.step()
        adam.step()
        adam.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == stage.steps - 1:
            say(
                f"step {step:5d} loss {value.item():.4f} apart {apart.item():.4f} "
                f"seconds {time.monotonic() - began:.0f}"
            )


def main(arguments: list[str] | None = None) -> int:
    """`python -m mini.pretrain`: write the model and how it was made."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", choices=list(MODELS), default="mini")
    parser.add_argument("--out", type=Path, help="by default models/palorad-MODEL")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="do without torch.compile")
    parser.add_argument("--first", type=int, default=1, help="go on at this stage from --out")
    given = vars(parser.parse_args(arguments))
    made_of = MODELS[given["model"]]
    recipe, stages = made_of.recipe, made_of.stages
    out: Path = given["out"] or folder(given["model"])
    threads = int(given["threads"])
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    if given["first"] > 1:
        model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).to(given["device"])
        report = json.loads((out / "made.json").read_text("utf-8"))
    elif made_of.start is not None:
        _take_over(folder(made_of.start), out)
        model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).to(given["device"])
        report = {"start": made_of.start, "stages": []}
    else:
        tokenizer.save(tokenizer.train(recipe.seed), out, max_length=1024)
        end, pad = tokenizer.SPECIAL.index(tokenizer.END), tokenizer.SPECIAL.index(tokenizer.PAD)
        model = build(recipe, end, pad).to(given["device"])
        report = {"stages": []}
    for number in range(given["first"] - 1, len(stages)):
        stage, began = stages[number], time.monotonic()
        count, seed = stage.steps * recipe.rows, recipe.seed + number
        workers = os.cpu_count() or threads
        rows = corpus.prepare(out / "tokenizer.json", count, seed, workers, stage.mix)
        pairs = alignment.pairs(out / "tokenizer.json", stage.aligned, seed)
        train(model, rows, recipe, stage, pairs, compiled=not given["eager"], say=_say)
        model.to(torch.bfloat16).to(torch.float32)
        done = {
            "steps": stage.steps,
            "tokens": int((rows.documents > 0).sum()),
            "seconds": round(time.monotonic() - began),
            "machine": f"{platform.machine()}, {_processor()}, {given['device']}",
            "threads": threads,
        }
        report["stages"] = [*report["stages"][:number], done]
        _say(f"stage {number + 1}: {done}")
        # Stored after every stage, so that a later one can be run again by itself.
        LlamaForCausalLM.save_pretrained(copy.deepcopy(model).to("cpu", torch.bfloat16), out)
        made = {
            "recipe": asdict(recipe),
            **report,
            "parameters": sum(p.numel() for p in model.parameters()),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }
        (out / "made.json").write_text(json.dumps(made, indent=2) + "\n", "utf-8")
    return 0


def folder(model: str) -> Path:
    """Where a model lies by default."""
    return FOLDERS / f"palorad-{model}"


def _take_over(start: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    needed = ("config.json", "generation_config.json", "model.safetensors")
    for file in (*(start / name for name in needed), *start.glob("tokenizer*")):
        shutil.copyfile(file, out / file.name)


def _processor() -> str:
    source = Path("/proc/cpuinfo")
    if not source.exists():
        return platform.processor()
    lines = source.read_text("utf-8").splitlines()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
