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

import torch
from datasets import Dataset  # type: ignore[import-not-found]
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found]

IGNORED = -100
MOST_ROWS = 1000


class Clock(TrainerCallback):  # type: ignore[misc]  # transformers ships no types here
    """The seconds from the beginning of a step to its end."""

    seconds = began = 0.0
    steps = 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Begin to count."""
        self.began = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Count."""
        self.seconds += time.perf_counter() - self.began
        self.steps += 1


def main() -> None:
    """Answer until standard input ends."""
    given = json.loads(sys.stdin.readline())
    tokenizer = AutoTokenizer.from_pretrained(given["model"], local_files_only=True)
    base = AutoModelForCausalLM.from_pretrained(
        given["model"], dtype=torch.float32, local_files_only=True
    )
    rank = given["rank"]
    model = get_peft_model(
        base, LoraConfig(r=rank, lora_alpha=rank, target_modules=given["targets"])
    )
    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(
            output_dir=out,
            packing=True,
            max_length=given["row"],
            per_device_train_batch_size=1,
            # All rows of the texts given are one step.
            gradient_accumulation_steps=MOST_ROWS,
            num_train_epochs=1,
            gradient_checkpointing=False,
            bf16=given["bf16"],
            use_cpu=True,
            max_grad_norm=1.0,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        for line in sys.stdin:
            clock, texts = Clock(), json.loads(line)
            rows = {
                "input_ids": [ids for ids, _ in texts],
                "labels": [[IGNORED] * start + ids[start:] for ids, start in texts],
            }
            learnt = step(model, tokenizer, config, rows, clock)
            if clock.steps != 1:
                raise RuntimeError(f"{clock.steps} steps instead of one")
            print(json.dumps([clock.seconds, learnt]), flush=True)


def step(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    config: SFTConfig,
    rows: dict[str, list[list[int]]],
    clock: Clock,
) -> int:
    """Take one step over the texts; how many learnt tokens it had."""
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    learnt = sum(label != IGNORED for row in trainer.train_dataset["labels"] for label in row)
    trainer.train()
    return learnt


if __name__ == "__main__":
    # What the trainer prints goes elsewhere: standard output carries the answers.
    main()
