"""Learn files one after the other with the product's trainer, and measure after each.

    python -m benchmarks.stream FILE … [--share 0.2] [--paraphrases N] [--set kl_weight=1.5]

One JSON line a file: accuracy on held-out paraphrases by file, reasoning on fresh problems of the
selection split, locality on known facts that are never replayed. No daemon, no gate: minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from adapters.config import TrainConfig
from adapters.generate import Generator
from adapters.models import base_hash
from adapters.plans import TrainPlan
from adapters.probe import Protection
from adapters.trainer import train_adapter
from daemon.config.settings import Settings
from daemon.training.child import read_examples
from mini import reasoning
from mini.check import MODEL, CheckQuestion, ask, share
from mini.splits import Split
from mini.world import Form
from policies.facts.heldout import with_held_out
from policies.facts.templates import varied
from policies.gate.grading import final
from policies.records import Fact, PlanKind

PARAPHRASES: Final = Settings().train.paraphrases
RANK: Final = Settings().train.rank_budget
SEED: Final = 11


@dataclass
class StreamJudge:
    """What is asked after each file."""

    problems: Sequence[reasoning.Problem]
    known: Sequence[CheckQuestion]
    base: Sequence[bool] = ()

    @classmethod
    def of(cls, count: int) -> StreamJudge:
        """`count` problems and every known fact of the gate's split."""
        rows = [json.loads(x) for x in (MODEL / "data/locality.jsonl").read_text().splitlines()]
        known = [CheckQuestion(row["prompt"], row["answer"], Form.CHAT) for row in rows]
        return cls(reasoning.distinct(Split.SELECTION, count, SEED), known)

    def measure(self, generator: Generator, adapter: str | None) -> dict[str, float]:
        """Shares answered as expected; problems that the base alone got right, or the adapter."""
        asked = [CheckQuestion(p.prompt, p.answer, Form.CHAT) for p in self.problems]
        said = ask(generator, adapter, asked, 160)
        right = [final(text, p.answer) for text, p in zip(said, self.problems, strict=True)]
        self.base = self.base or right
        return {
            "reasoning": round(sum(right) / len(right), 4),
            "broken": sum(old and not new for old, new in zip(self.base, right, strict=True)),
            "mended": sum(new and not old for old, new in zip(self.base, right, strict=True)),
            "locality": round(share(generator, adapter, self.known), 4),
        }


def read(path: Path, paraphrases: int) -> tuple[Fact, ...]:
    """The facts of a file, learnt in `paraphrases` of them."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    facts = [Fact(**{"id": f"{path.stem}-{n}", **row}) for n, row in enumerate(rows)]
    return tuple(with_held_out(fact, varied, paraphrases) for fact in facts)


def stream(
    files: Sequence[Path],
    protection: Protection,
    config: TrainConfig,
    judge: StreamJudge,
    paraphrases: int = PARAPHRASES,
) -> None:
    """Learn and measure every file; prints one JSON line for the base and for each."""
    generator, sha = Generator(MODEL), base_hash(MODEL)
    say({"file": None, **judge.measure(generator, None)})
    adapter: Path | None = None
    learnt: dict[str, tuple[Fact, ...]] = {}
    with tempfile.TemporaryDirectory() as name:
        for number, file in enumerate(files):
            folder, facts, began = Path(name), read(file, paraphrases), time.monotonic()
            report = train_adapter(
                TrainPlan(
                    kind=PlanKind.LEARN,
                    rank=RANK,
                    seed=0,
                    model_dir=MODEL,
                    base_hash=sha,
                    base_name="base",
                    facts=facts,
                    replay=tuple(f for earlier in learnt.values() for f in earlier),
                    known=tuple(read_examples(MODEL / "data/known-replay.jsonl", "answer")),
                    reasoning=tuple(
                        read_examples(MODEL / "data/reasoning-replay.jsonl", "solution")
                    ),
                    start=() if adapter is None else (adapter,),
                    probe_dir=MODEL / "probe",
                    protection=protection,
                    config=config,
                ),
                out=folder / f"adapter-{number}",
                work=folder / f"work-{number}",
                records=folder / "records",
            )
            seconds = time.monotonic() - began
            served, adapter = f"adapter-{number}", folder / f"adapter-{number}"
            learnt[file.stem] = facts
            generator.load(served, adapter)
            accuracy = {
                stem: round(share(generator, served, _held_out(facts)), 4)
                for stem, facts in learnt.items()
            }
            missed = [q.prompt for q in _held_out(facts) if not share(generator, served, [q])]
            measured = judge.measure(generator, served)
            generator.unload(served)
            row: dict[str, Any] = {"file": file.stem, "accuracy": accuracy, **measured}
            say({**row, "steps": report.steps, "seconds": round(seconds), "missed": missed})


def _held_out(facts: Sequence[Fact]) -> list[CheckQuestion]:
    return [CheckQuestion(p, f.answer, Form.CHAT) for f in facts for p in f.eval_prompts]


def say(row: Mapping[str, object]) -> None:
    """One line of JSON."""
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """`python -m benchmarks.stream FILE …`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--share", type=float, default=Protection().share)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--paraphrases", type=int, default=PARAPHRASES)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    changes = {key: json.loads(value) for key, _, value in (x.partition("=") for x in given.set)}
    protection = Protection(kind="activations", share=given.share)
    config, judge = TrainConfig(**changes), StreamJudge.of(given.problems)
    stream(given.files, protection, config, judge, given.paraphrases)
    return 0


if __name__ == "__main__":
    sys.exit(main())
