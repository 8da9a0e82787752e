"""Accuracy on held-out paraphrases with palorad's paraphrases and without.

    python -m benchmarks.paraphrases --out benchmarks/results/paraphrases.json

Each file of facts is learnt from its plain question alone (`off`: one paraphrase a fact), in the
paraphrases that palorad makes of it (`on`: `train.paraphrases` of them, the held-out ones
excepted), and in those plus the reversed question (`both`: `train.reversed_questions`), with the
product's settings otherwise. The paraphrases that are asked were written by hand with the facts
and are never trained. Accuracy is the share of questions answered right, asked as a chat;
`accuracy_reversed` that of the held-out question from the value to its owner.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from adapters import models
from adapters.generate import Generator, Request
from adapters.plans import TrainPlan
from adapters.probe import Protection
from adapters.trainer import train_adapter
from benchmarks import pages
from daemon.config.settings import Settings
from daemon.training.child import read_examples
from demo.report import machine_in_use, versions_in_use
from policies.facts.admission import parse_facts
from policies.facts.heldout import with_held_out
from policies.facts.reversal import reversed_facts
from policies.facts.templates import varied
from policies.gate.grading import normalised
from policies.records import Fact, PlanKind

ROOT = Path(__file__).parent.parent
DOCUMENTED = Path("benchmarks/results/paraphrases.json")
FORMS = {
    "off": "its question alone",
    "on": "palorad's paraphrases",
    "both": "and reversed questions",
}
TOKENS = 24


def facts_of(path: Path) -> tuple[Fact, ...]:
    """The facts of a file with nothing but their question to learn."""
    return tuple(
        fact.model_copy(update={"paraphrases": ()}) for fact in parse_facts(path.read_bytes())
    )


def train(
    facts: tuple[Fact, ...],
    reversed_: tuple[Fact, ...],
    seed: int,
    settings: Settings,
    out: Path,
) -> dict[str, Any]:
    """One adapter on the bare base, as the daemon would train the first one."""
    plan = TrainPlan(
        kind=PlanKind.LEARN,
        rank=settings.train.rank,
        seed=seed,
        model_dir=settings.model.path,
        base_hash=models.base_hash(settings.model.path),
        base_name=settings.model.name,
        facts=facts,
        reversed_facts=reversed_,
        known=tuple(read_examples(settings.train.replay.known, "answer")),
        reasoning=tuple(read_examples(settings.train.replay.reasoning, "solution")),
        probe_dir=settings.probe.path,
        protection=Protection(**settings.protection.model_dump()),
    )
    report = train_adapter(
        plan, out=out, work=out.with_name(f"{out.name}-work"), records=out.parent / "records"
    )
    return {"steps": report.steps, "seconds": round(report.seconds, 1)}


def accuracy(generator: Generator, adapter: Path, facts: tuple[Fact, ...]) -> float:
    """Share of held-out questions that the adapter answers right."""
    generator.load(adapter.name, adapter)
    asked = [(prompt, fact.answer) for fact in facts for prompt in fact.eval_prompts]
    requests = [
        Request(generator.encode_chat([{"role": "user", "content": prompt}]), TOKENS)
        for prompt, _ in asked
    ]
    said = generator.generate(adapter.name, requests)
    generator.unload(adapter.name)
    right = [normalised(g.text, answer) for g, (_, answer) in zip(said, asked, strict=True)]
    return sum(right) / len(right)


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Accuracy by file and form, the mean over seeds with each seed's own."""
    lines = [f"| file | asked | {' | '.join(FORMS.values())} |", "|---|---|---|---|---|"]
    asked = {"accuracy": "as the facts are", "accuracy_reversed": "reversed"}
    for name, key in product(sorted({run["file"] for run in runs}), asked):
        cells = []
        for form in FORMS:
            of = [run[key] for run in runs if (run["file"], run["paraphrases"]) == (name, form)]
            each = ", ".join(f"{value:.2f}" for value in of)
            cells.append(f"{statistics.mean(of):.2f} ({each})")
        lines.append(f"| {name} | {asked[key]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every file, seed and form, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=DOCUMENTED)
    parser.add_argument("--tables", action="store_true", help="only write what the results show")
    chosen = parser.parse_args()
    if not chosen.tables:
        measure(chosen.files, chosen.seeds, chosen.out)
    if chosen.out == DOCUMENTED:
        runs = json.loads(DOCUMENTED.read_text("utf-8"))["runs"]
        pages.fill(ROOT / "benchmarks/results/paraphrases.md", {"paraphrases": table(runs)})


def measure(files: int, seeds: int, out: Path) -> None:
    """Train and ask each form of each file with each seed."""
    settings = Settings.load(ROOT / "config.toml")
    generator = Generator(settings.model.path)
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="palorad-paraphrases-") as folder:
        for path in sorted((ROOT / "examples" / "facts").glob("*.jsonl"))[:files]:
            plain = facts_of(path)
            varied_facts = tuple(
                with_held_out(f, varied, settings.train.paraphrases) for f in plain
            )
            reversed_ = reversed_facts(plain)
            forms = {
                "off": (plain, ()),
                "on": (varied_facts, ()),
                "both": (varied_facts, reversed_),
            }
            for seed, form in product(range(seeds), forms):
                began = time.monotonic()
                adapter = Path(folder) / f"{path.stem}-{seed}-{form}"
                trained = train(*forms[form], seed, settings, adapter)
                run = {
                    "file": path.name,
                    "facts": len(plain),
                    "seed": seed,
                    "paraphrases": form,
                    "trained_paraphrases": len(forms[form][0][0].training_prompts),
                    "accuracy": round(accuracy(generator, adapter, plain), 4),
                    "accuracy_reversed": round(accuracy(generator, adapter, reversed_), 4),
                    **trained,
                    "all_seconds": round(time.monotonic() - began, 1),
                }
                runs.append(run)
                print(json.dumps(run), flush=True)
    result: dict[str, Any] = {
        form: round(statistics.mean(r["accuracy"] for r in runs if r["paraphrases"] == form), 4)
        for form in FORMS
    }
    result |= {
        "learnt": "one file alone on the bare base, with the product's settings",
        "files": sorted({run["file"] for run in runs}),
        "runs": runs,
        "versions": versions_in_use(),
        "machine": machine_in_use(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
