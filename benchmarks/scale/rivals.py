"""The time of a training step on SmolLM2 beside the same texts in a PEFT loop and in TRL.

Ours is the product's own loop: projectors, KL terms, the template's prefix read once, packed rows.
The PEFT loop has the same texts in rows padded by length, the same precision, logits at learnt
tokens only and the labels' loss alone; TRL packs them itself. All in turns, step by step, each in
seconds of the one core that it uses.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn

from adapters import models
from adapters.config import TrainConfig
from adapters.examples import Encoded
from adapters.losses import Objective, learnt_logits
from adapters.passes import GPU_TOKENS, Passes
from adapters.plans import TrainPlan, TrainProgress
from adapters.precision import multiplies_bf16, reduced
from adapters.recipe import Recipe
from adapters.trainer import train_adapter
from benchmarks.provenance import ROOT
from benchmarks.scale import material

TRL: Final = "1.16.0"
ENVIRONMENT: Final = ROOT / ".venv-trl"
ROW: Final = 512
"""Tokens of a row of TRL's: as many as a pass of ours has."""
WARM: Final = 1
REPEATS: Final = 8
Rival = Callable[[Sequence[Encoded]], tuple[float, int]]
"""Takes a step over texts: its seconds, and how many tokens were learnt."""


@dataclass
class Watched(Recipe):
    """The product's recipe; remembers the texts of a step."""

    texts: list[Encoded] = field(default_factory=list)

    def gradients(
        self, model: nn.Module, objective: Objective, passes: Passes
    ) -> tuple[float, dict[str, float]]:
        """Those of the product."""
        terms = [text for term in objective.kl_terms for text in term.texts]
        self.texts = [*objective.new, *objective.replayed, *terms]
        return super().gradients(model, objective, passes)


def run() -> dict[str, Any]:
    """Medians over the repeats, and their quartiles."""
    torch.set_num_threads(1)
    config = TrainConfig(steps=WARM + REPEATS, stop_loss=None, checkpoint_s=1e9)
    plan = material.plan(config.resolved("cpu", material.FACTS))
    with trl(plan) as theirs:
        rows = alternate(plan, {"peft": peft(plan), "trl": theirs})[WARM:]
    found: dict[str, Any] = {}
    for name in ("peft", "trl"):
        ratios = [row["ours"] / row[name] for row in rows]
        low, _, high = quantiles(ratios, n=4)
        found[f"{name}_ratio"] = round(median(ratios), 3)
        found[f"{name}_ratio_quartiles"] = [round(low, 3), round(high, 3)]
    seconds = {n: round(median(row[n] for row in rows), 2) for n in ("ours", "peft", "trl")}
    sizes = {n: round(median(row[n] for row in rows)) for n in ("texts", "tokens", "learnt")}
    step = {"seconds": seconds, **sizes, "trl": TRL}
    return found | {"rivals_step": {**step, "bf16": multiplies_bf16(), "repeats": len(rows)}}


def alternate(plan: TrainPlan, rivals: dict[str, Rival]) -> list[dict[str, float]]:
    """Each step of a run of the product, and the same texts in each rival right after it."""
    rows: list[dict[str, float]] = []
    watched = Watched()
    resumed = [0.0]

    def after(_: TrainProgress) -> None:
        ours, texts = _now() - resumed[0], watched.texts
        tokens = sum(len(one.ids) for one in texts)
        learnt = sum(len(one.ids) - one.start for one in texts)
        row: dict[str, float] = {"texts": len(texts), "tokens": tokens, "learnt": learnt}
        for name, rival in rivals.items():
            row[name], theirs = rival(texts)
            if theirs != learnt:
                raise RuntimeError(f"{name} learnt {theirs} tokens instead of {learnt}")
        rows.append(row | {"ours": ours})
        print(json.dumps(rows[-1]), flush=True)
        resumed[0] = _now()

    with TemporaryDirectory() as folder:
        out, work = Path(folder, "out"), Path(folder, "work")
        train_adapter(plan, out=out, work=work, progress=after, recipe=watched)
    return rows


def _precision(device: torch.device) -> AbstractContextManager[None]:
    """Products in bf16 where ours are."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return reduced(device)


def _now() -> float:
    """Seconds of this process; on a GPU of the clock, once all that was begun is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def peft(plan: TrainPlan) -> Rival:
    """A plain loop over the same LoRA, its passes padded and of like length."""
    device = models.pick_device()
    tokenizer = models.load_tokenizer(plan.model_dir)
    base = models.load_base(plan.model_dir, device)
    lora = LoraConfig(r=plan.rank, lora_alpha=plan.rank, target_modules=list(plan.config.targets))
    model = get_peft_model(base, lora)
    passes = replace(Passes.of(plan.config, base, tokenizer), prefix=(), packed=False)
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step(texts: Sequence[Encoded]) -> tuple[float, int]:
        began, learnt = _now(), 0
        for group in passes.groups(texts, lambda one: len(one.ids)):
            with _precision(device):
                logits, targets = learnt_logits(model, passes.batch(group))
                loss = F.cross_entropy(logits, targets, reduction="sum")
            torch.autograd.backward(loss)
            learnt += len(targets)
        for one in trained:
            if one.grad is not None:
                one.grad /= learnt
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return _now() - began, learnt

    return step


@contextmanager
def trl(plan: TrainPlan) -> Iterator[Rival]:
    """TRL's trainer in a process and an environment of its own."""
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    given = {
        "model": str(plan.model_dir.resolve()),
        "rank": plan.rank,
        "targets": list(plan.config.targets),
        "row": GPU_TOKENS if torch.cuda.is_available() else ROW,
        "bf16": torch.cuda.is_available() or multiplies_bf16(),
        "cuda": torch.cuda.is_available(),
    }
    with subprocess.Popen(
        [installed(), Path(__file__).with_name("trl_step.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as child:
        ask, answers = child.stdin, child.stdout
        if ask is None or answers is None:
            raise RuntimeError("no pipe to TRL's process")

        def say(what: object) -> None:
            ask.write(json.dumps(what) + "\n")
            ask.flush()

        def step(texts: Sequence[Encoded]) -> tuple[float, int]:
            say([[one.ids, one.start] for one in texts])
            for line in answers:
                if line.startswith("["):
                    seconds, learnt = json.loads(line)
                    return float(seconds), int(learnt)
            raise RuntimeError("TRL's process ended: see what it said above")

        say(given)
        try:
            yield step
        finally:
            ask.close()


def installed() -> Path:
    """The Python of an environment with TRL, made from the package index where it is missing.

    Torch, transformers and PEFT are those that palorad uses.
    """
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
        (packages,) = ENVIRONMENT.glob("lib/python3*/site-packages")
        own = Path(torch.__file__).resolve().parents[1]
        (packages / "palorad.pth").write_text(f"{own}\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"trl=={TRL}"], check=True)
        (ENVIRONMENT / "ready").write_text(TRL)
    return python
