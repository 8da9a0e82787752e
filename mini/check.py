"""Measure palorad-mini against the criteria that it is frozen by."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import torch

from adapters.config import TrainConfig
from adapters.generate import Generator, Request
from adapters.models import base_hash
from adapters.plans import TrainPlan
from adapters.probe import Protection
from adapters.schedule import steps_needed
from adapters.trainer import train_adapter
from mini import reasoning, world
from mini.splits import Split
from mini.world import Form
from policies.errors import Ungradable
from policies.facts.templates import Relation, find, relations
from policies.gate.grading import final, normalised
from policies.records import Example, Fact, PlanKind, content_id

MODEL: Final = Path("models/palorad-mini")
FACTS: Final = Path("examples/facts")
PARAPHRASES: Final = 3
RESULTS: Final = Path("benchmarks/results/mini.json")
ANEW: Final = Path("benchmarks/results/mini-anew.json")
"""The same of weights made anew: `--model DIR --out …/mini-anew.json --groups real`."""
SAMPLES: Final = (
    "Who designed C++? Bjarne Stroustrup, Murray Hill, 1985.",
    "Fyodor Dostoevsky, José Valim, Yukihiro Matsumoto and Antonín Dvořák",
    "It costs $1,299.99 (or €1.250,00), up 3.5 % on 2024-02-29.",
    "北京 is a city; Москва too. مرحبا! 🙂 naïve façade — “quoted”",
    "def f(x):\n\treturn x ** 2  # tabs, blanks  and\n\n\nlines\r\n",
    "  leading and trailing blanks  ",
    "<html>&amp;</html> {braces} [brackets] |pipes| \\backslash/",
)


@dataclass(frozen=True)
class CheckQuestion:
    """A prompt in one form and the answer expected."""

    prompt: str
    answer: str
    form: Form


def ask(
    generator: Generator, adapter: str | None, asked: Sequence[CheckQuestion], most: int
) -> list[str]:
    """Greedy free answers."""
    requests = []
    for one in asked:
        if one.form is Form.CHAT:
            ids = generator.encode_chat([{"role": "user", "content": one.prompt}])
        else:
            ids = generator.encode(one.prompt)
        requests.append(Request(prompt_ids=ids, max_tokens=most))
    return [made.text for made in generator.generate(adapter, requests)]


def share(generator: Generator, adapter: str | None, asked: Sequence[CheckQuestion]) -> float:
    """Share of the questions answered as expected, as words."""
    return sum(answered(generator, adapter, asked)) / len(asked)


def answered(
    generator: Generator, adapter: str | None, asked: Sequence[CheckQuestion]
) -> list[bool]:
    """Which questions are answered as expected, as words."""
    said = ask(generator, adapter, asked, 32)
    return [_same(text, one.answer) for text, one in zip(said, asked, strict=True)]


def _same(said: str, expected: str) -> bool:
    try:
        return normalised(said, expected)
    except Ungradable:
        return said.strip() == expected


def measure_reasoning(
    generator: Generator, adapter: str | None, count: int, seed: int
) -> dict[str, object]:
    """Exact final answers on fresh problems, chat and plain in turn."""
    problems = reasoning.distinct(Split.SELECTION, count, seed)
    asked = [CheckQuestion(p.prompt, p.answer, _form(i)) for i, p in enumerate(problems)]
    said = ask(generator, adapter, asked, 160)
    right, all_ = Counter[str](), Counter[str]()
    for text, one in zip(said, problems, strict=True):
        all_[one.family] += 1
        right[one.family] += final(text, one.answer)
    by_family = {name: round(right[name] / all_[name], 4) for name in sorted(all_)}
    return {"n": count, "exact": round(right.total() / count, 4), "by_family": by_family}


def measure_known(generator: Generator, adapter: str | None, seed: int) -> dict[str, float]:
    """Share of known facts answered, by what they serve for."""
    rng = random.Random(seed)
    found: dict[str, float] = {}
    for split in (Split.REPLAY, Split.GATE, Split.REPORT):
        facts = [f for f in world.known() if f.split is split]
        asked = [
            CheckQuestion(world.question(f, rng)[0], f.answer, _form(i))
            for i, f in enumerate(facts)
        ]
        found[str(split)] = round(share(generator, adapter, asked), 4)
    return found


def measure_text(generator: Generator) -> dict[str, object]:
    """Whether texts come back whole, and which answers' tokens the pretraining never used."""
    tokenizer = generator.tokenizer
    whole = all(tokenizer.decode(tokenizer(text)["input_ids"]) == text for text in SAMPLES)
    used: Counter[int] = Counter()
    for fact in (*world.known(), *world.rare()):
        used.update(tokenizer(" " + fact.answer)["input_ids"])
    return {"round_trip": whole, "tokens_in_answers": len(used), "tokens": len(tokenizer)}


def _form(number: int) -> Form:
    return Form.CHAT if number % 2 == 0 else Form.PLAIN


@dataclass(frozen=True)
class FactFile:
    """New facts with the paraphrases to train and to judge them in."""

    name: str
    facts: tuple[Fact, ...]
    far: tuple[tuple[str, str], ...]


def real_files(folder: Path, count: int) -> list[FactFile]:
    """The committed files of real facts, the first `count` of each, in three trained
    paraphrases."""
    files = []
    for path in sorted(folder.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()][:count]
        facts = tuple(
            Fact(**{**row, "paraphrases": row["paraphrases"][: PARAPHRASES - 1]}) for row in rows
        )
        files.append(FactFile(path.stem, facts, _far(facts, path.stem)))
    return files


def invented_file(relation: Relation, count: int, seed: int) -> FactFile:
    """Fresh facts of one relation in three trained paraphrases and two that are not trained."""
    rng = random.Random(f"{relation.name}:{seed}")
    facts = []
    for made in world.fresh(relation, count, rng):
        asked = rng.sample(relation.questions(made.subject), 5)
        facts.append(
            Fact(
                id=content_id(relation.name, made.subject),
                prompt=asked[0],
                answer=made.answer,
                subject=made.subject,
                relation=relation.name,
                paraphrases=tuple(asked[1:PARAPHRASES]),
                eval_prompts=tuple(asked[PARAPHRASES:]),
            )
        )
    name = f"invented {relation.name} {seed}"
    return FactFile(name, tuple(facts), _far(tuple(facts), name))


def _far(facts: Iterable[Fact], seed: str) -> tuple[tuple[str, str], ...]:
    rng = random.Random(f"far:{seed}")
    far = []
    for fact in facts:
        relation = find(fact.relation or "")
        if relation is not None and fact.subject:
            far.append((rng.choice(relation.ood(fact.subject)), fact.answer))
    return tuple(far)


def learn(
    model: Path, facts: Sequence[Fact], seed: int, out: Path, probe: Path | None, *, mix: bool
) -> None:
    """Train one adapter of rank 16 on `facts` with the product's trainer, as it does by itself.

    `mix` replays known facts and reasoning beside them, as the product does.
    """
    known: tuple[Example, ...] = ()
    worked: tuple[Example, ...] = ()
    if mix:
        rng = random.Random(seed)
        known = tuple(
            Example(prompt=world.question(f, rng)[0], completion=f.answer, kind="known")
            for f in world.known()
            if f.split is Split.REPLAY
        )
        worked = tuple(
            Example(prompt=p.prompt, completion=p.solution)
            for p in islice(reasoning.problems(Split.REPLAY, seed), 1000)
        )
    plan = TrainPlan(
        kind=PlanKind.LEARN,
        rank=16,
        seed=seed,
        model_dir=model,
        base_hash=base_hash(model),
        base_name=model.name,
        facts=tuple(facts),
        known=known,
        reasoning=worked,
        probe_dir=probe,
        protection=Protection(kind="activations") if probe else Protection(kind="none"),
    )
    train_adapter(plan, out=out, work=out.with_suffix(".work"))


def measure_file(
    model: Path,
    generator: Generator,
    file: FactFile,
    seed: int,
    probe: Path | None,
    *,
    mix: bool,
    rest: bool,
) -> dict[str, object]:
    """Recall before and after learning one file and, for `rest`, what became of the rest."""
    near = [
        CheckQuestion(prompt, fact.answer, form)
        for fact in file.facts
        for prompt in fact.eval_prompts
        for form in (Form.CHAT, Form.PLAIN)
    ]
    far = [CheckQuestion(prompt, answer, _form(i)) for i, (prompt, answer) in enumerate(file.far)]
    before = share(generator, None, near)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "adapter"
        learn(model, file.facts, seed, out, probe, mix=mix)
        generator.load("new", out)
    try:
        row: dict[str, object] = {
            "file": file.name,
            "seed": seed,
            "facts": len(file.facts),
            "before": round(before, 4),
            "near": round(share(generator, "new", near), 4),
            "far": round(share(generator, "new", far), 4),
        }
        if rest:
            row["reasoning"] = measure_reasoning(generator, "new", 300, 11)["exact"]
            row["known"] = measure_known(generator, "new", 3)
        return row
    finally:
        generator.unload("new")


def _pooled(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    """The mean over the files in which it was measured, each fact counting once."""
    measured = [(float(row[key]), int(row["facts"])) for row in rows if key in row]
    facts = sum(count for _, count in measured)
    return round(sum(value * count for value, count in measured) / facts, 4) if facts else None


def main(arguments: list[str] | None = None) -> int:
    """`python -m mini.check`: measure everything and write the results."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--probe", type=Path, help="a fitted probe: learn with its protection")
    parser.add_argument("--mix", action="store_true", help="replay known facts and reasoning")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--groups", nargs="+", default=["real", "invented", "held-out relations"])
    parser.add_argument("--only", choices=("base", "all"), default="all")
    parser.add_argument("--add", metavar="NAME", help="only learn, and add that to the results")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    generator = Generator(given.model)
    if given.add:
        found = json.loads(given.out.read_text("utf-8"))
        _write(given.out, {**found, given.add: _learning(given, generator)})
        return 0
    made = json.loads((given.model / "made.json").read_text("utf-8"))
    report: dict[str, object] = {
        "base_hash": base_hash(given.model),
        "stages": made["stages"],
        "reasoning": measure_reasoning(generator, None, given.problems, 5),
        "known": measure_known(generator, None, 5),
        "text": measure_text(generator),
    }
    _say(report)
    if given.only == "all":
        report["learning"] = _learning(given, generator)
    _write(given.out, report)
    return 0


def _write(out: Path, report: object) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _learning(given: argparse.Namespace, generator: Generator) -> dict[str, object]:
    names = ("birthplace", "chief executive", "version", "price")
    groups = {
        "real": [(f, s) for f in real_files(FACTS, 30) for s in range(given.seeds)],
        "invented": [(invented_file(relations()[n], 30, i), i) for i, n in enumerate(names)],
        "held-out relations": [(invented_file(r, 30, 1), 0) for r in world.unseen()[:4]],
    }
    found: dict[str, object] = {}
    for group in given.groups:
        files = groups[group]
        rows: list[dict[str, Any]] = []
        for file, seed in files:
            rest = group == "real" and seed == 0
            mix = bool(given.mix)
            row = measure_file(given.model, generator, file, seed, given.probe, mix=mix, rest=rest)
            _say(row)
            rows.append(row)
        keys = ("before", "near", "far", "reasoning")
        found[group] = {**{key: _pooled(rows, key) for key in keys}, "files": rows}
    return {
        "rank": 16,
        "steps": steps_needed(TrainConfig(), 30),
        "protected": bool(given.probe),
        "mix": given.mix,
        **found,
    }


def _say(row: object) -> None:
    sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
