"""`make smol-skill`: the real model fine-tuned on short problems: a skill that it can lose."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from adapters import files
from adapters.config import TrainConfig
from adapters.examples import encode
from adapters.losses import Objective, accumulate_gradients
from adapters.passes import Passes
from adapters.precision import reduced
from policies.gate.grading import grade
from smol import checkpoint, skill
from smol.skill import SkillProblem

FOLDER: Final = Path("models/smol-skill")
SIZES: Final = {"train": 2640, "skill": 600, "gate": 1600, "report": 1200}
SEED: Final = 7
BATCH: Final = 24
LEARNING_RATE: Final = 2e-4
PASS_TOKENS: Final = 1024
ANSWER_TOKENS: Final = 64

_CARD: Final = """---
license: apache-2.0
library_name: transformers
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# smol-skill: a real model with a skill to lose

`smol` (SmolLM2-135M-Instruct from its Q4_1 quantisation, see its own card) after {steps} steps of
{batch} short word problems, cross-entropy on the solutions, AdamW at {lr}, seed {seed}, made by
`python -m smol.finetune` in {minutes:.0f} minutes ({machine}). The problems are generated
(`smol/skill.py`); `data/` holds those for the probe and replay (`skill.jsonl`), for the gate and
for the report. No prompt stands in two of them or in the training set.

Right of the report's first {asked} problems, by the grader `final`: {right:.1%} (before the
fine-tuning: {before:.1%}).

| family | problems | right | before |
|---|---|---|---|
{table}
"""


def main() -> None:
    """Train once; nothing is done where the model is already there."""
    parser = argparse.ArgumentParser(prog="python -m smol.finetune", description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--base", type=Path, default=checkpoint.FOLDER)
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--asked", type=int, default=160, help="problems asked before and after")
    chosen = parser.parse_args()
    print(make(chosen.out, chosen.base, chosen.steps, chosen.asked))


def make(out: Path, base: Path, steps: int, asked: int) -> Path:
    """The folder with the fine-tuned checkpoint and its data; whole or not at all."""
    if (out / "README.md").exists():
        return out
    logging.disable_progress_bar()
    torch.manual_seed(SEED)
    started = time.monotonic()
    parts = skill.splits(SIZES, SEED)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    report = parts["report"][:asked]
    before = solved(model, tokenizer, report)
    print(f"before: {sum(before) / len(before):.1%} of {len(before)} problems", flush=True)
    train(model, tokenizer, parts["train"], steps)
    after = solved(model, tokenizer, report)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".smol-skill-") as folder:
        made = Path(folder) / "checkpoint"
        model.to(torch.bfloat16).save_pretrained(made)
        tokenizer.save_pretrained(made)
        shutil.copy(base / "LICENSE", made / "LICENSE")
        (made / "data").mkdir()
        for name in ("skill", "gate", "report"):
            skill.write(made / "data" / f"{name}.jsonl", parts[name])
        figures: dict[str, Any] = {
            "steps": steps,
            "batch": BATCH,
            "lr": LEARNING_RATE,
            "seed": SEED,
            "minutes": (time.monotonic() - started) / 60,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "asked": asked,
            "before": sum(before) / asked,
            "right": sum(after) / asked,
            "families": by_family(report, before, after),
        }
        files.write_text(made / "figures.json", json.dumps(figures, indent=1) + "\n")
        files.write_text(made / "README.md", _CARD.format(**figures, table=_table(figures)))
        for path in made.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        made.rename(out)
    return out


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[SkillProblem],
    steps: int,
) -> None:
    """`steps` steps of AdamW over the solutions; the rate warms up and falls to nothing."""
    passes = Passes.of(TrainConfig(max_tokens=PASS_TOKENS), model, tokenizer)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 10) * (1 - step / steps)
        rows = [problems[(step * BATCH + k) % len(problems)] for k in range(BATCH)]
        texts = [encode(tokenizer, row.prompt, row.solution, "chat") for row in rows]
        loss, _ = accumulate_gradients(
            model, Objective(texts), passes, lambda _: reduced(model.device)
        )
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step + 1} of {steps}: loss {loss:.4f}", flush=True)


def solved(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[SkillProblem],
    batch: int = 64,
) -> list[bool]:
    """Which problems the greedy answer solves, as the gate's grader `final` reads it."""
    tokenizer.padding_side = "left"
    right = []
    for start in range(0, len(problems), batch):
        rows = problems[start : start + batch]
        texts = [_asked(tokenizer, row.prompt) for row in rows]
        given = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            out = model.generate(**given, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        said = tokenizer.batch_decode(
            out[:, given["input_ids"].shape[1] :], skip_special_tokens=True
        )
        right += [grade("final", text, row.answer) for text, row in zip(said, rows, strict=True)]
    return right


def by_family(
    problems: Sequence[SkillProblem], before: Sequence[bool], after: Sequence[bool]
) -> dict[str, dict[str, float]]:
    """Of each family: how many problems there are, and the shares solved before and after."""
    rows = {}
    for family in skill.FAMILIES:
        chosen = [n for n, one in enumerate(problems) if one.family == family]
        if chosen:
            rows[family] = {
                "problems": len(chosen),
                "right": sum(after[n] for n in chosen) / len(chosen),
                "before": sum(before[n] for n in chosen) / len(chosen),
            }
    return rows


def _table(figures: dict[str, Any]) -> str:
    return "\n".join(
        f"| {family} | {row['problems']} | {row['right']:.0%} | {row['before']:.0%} |"
        for family, row in figures["families"].items()
    )


def _asked(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    turn = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))


if __name__ == "__main__":
    main()
