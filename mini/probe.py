"""Fit a model's probe, as the product would by itself, and keep it beside the weights."""

from __future__ import annotations

import argparse
import sys
from typing import Final

import torch

from adapters.probe_fit import FitProgress, ProbeConfig, fit_probe
from mini.export import files
from mini.pretrain import folder
from mini.recipes import MODELS
from policies.records import Example

EVERY: Final = 50


def main(arguments: list[str] | None = None) -> int:
    """`python -m mini.probe`: fit it on the skill's worked problems; minutes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", choices=list(MODELS), default="mini")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    skill = tuple(
        Example(prompt=str(row["prompt"]), completion=str(row["solution"]), kind="reasoning")
        for row in files(MODELS[given.model])["skill.jsonl"]
    )
    model = folder(given.model)
    fit_probe(model, skill, model / "probe", ProbeConfig(), _say)
    return 0


def _say(progress: FitProgress) -> None:
    if progress.done % EVERY == 0:
        sys.stdout.write(f"{progress.stage}: {progress.done} of {progress.total}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
