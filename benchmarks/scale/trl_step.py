"""One optimiser step of TRL's SFTTrainer for each line of JSON on standard input.

Run in an environment of its own, in which TRL is installed. The first line says which model, LoRA
and row length; each further one is a list of [token ids, place of the first learnt token]. It is
answered by a line with the seconds of the step and its learnt tokens.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-not-found]
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found]

IGNORED = -100
MOST_ROWS = 1000


class Clock(TrainerCallback):  # type: ignore[misc]  # transformers ships no types here
    """The seconds of the process from the beginning of a step to its end."""

    seconds = began = 0.0
    steps = 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Begin to count."""
        self.began = now()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Count."""
        self.seconds += now() - self.began
        self.steps += 1


def now() -> float:
    """Seconds of this process; on a GPU of the clock, once all that was begun is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def main() -> None:
    """Answer until standard input ends."""
    given = json.loads(sys.stdin.readline())
    with tempfile.TemporaryDirectory() as out:
        for line in sys.stdin:
            seconds, learnt = step(given, json.loads(line), out)
            print(json.dumps([seconds, learnt]), flush=True)


def step(given: Mapping[str, Any], texts: Sequence[Any], out: str) -> tuple[float, int]:
    """The seconds of one step over the texts, and its learnt tokens; with a model of its own,
    since each trainer wraps what it is given.
    """
    clock = Clock()
    trainer = SFTTrainer(
        model=loaded(given),
        args=settings(given, out),
        train_dataset=Dataset.from_dict(
            {
                "input_ids": [ids for ids, _ in texts],
                "labels": [[IGNORED] * start + ids[start:] for ids, start in texts],
            }
        ),
        processing_class=AutoTokenizer.from_pretrained(given["model"], local_files_only=True),
        callbacks=[clock],
    )
    learnt = sum(label != IGNORED for row in trainer.train_dataset["labels"] for label in row)
    trainer.train()
    if clock.steps != 1:
        raise RuntimeError(f"{clock.steps} steps instead of one")
    return clock.seconds, learnt


def loaded(given: Mapping[str, Any]) -> nn.Module:
    """The base with a LoRA, in the precision that palorad has it in."""
    dtype = torch.bfloat16 if given["cuda"] else torch.float32
    base = AutoModelForCausalLM.from_pretrained(given["model"], dtype=dtype, local_files_only=True)
    rank, targets = given["rank"], given["targets"]
    model: nn.Module = get_peft_model(
        base, LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)
    )
    return model


def settings(given: Mapping[str, Any], out: str) -> SFTConfig:
    """The trainer's own packing, and nothing that costs time beside the step."""
    return SFTConfig(
        output_dir=out,
        packing=True,
        max_length=given["row"],
        per_device_train_batch_size=1,
        # All rows of the texts given are one step.
        gradient_accumulation_steps=MOST_ROWS,
        num_train_epochs=1,
        gradient_checkpointing=False,
        bf16=given["bf16"],
        use_cpu=not given["cuda"],
        max_grad_norm=1.0,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


if __name__ == "__main__":
    main()
