"""Write the text that palorad's probe, gate and replay use with palorad-mini or another."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from mini import reasoning, world
from mini.pretrain import folder
from mini.recipes import MODELS, Made
from mini.splits import Split

_SEED: Final = 7
Row = Mapping[str, object]


def files(made: Made = MODELS["mini"]) -> dict[str, list[Row]]:
    """Every data file's lines by its name, the same at every call."""
    return {
        "skill.jsonl": _worked(Split.PROBE, 1000, made),
        "reasoning-gate.jsonl": _asked(Split.GATE, 4000, made),
        "reasoning-report.jsonl": _asked(Split.REPORT, 1200, made),
        "reasoning-replay.jsonl": _worked(Split.REPLAY, 1000, made),
        "known-replay.jsonl": _replayed(made),
        "locality.jsonl": _known(Split.GATE, made),
        "locality-report.jsonl": _known(Split.REPORT, made),
    }


def render(rows: Iterable[Row]) -> str:
    """The lines as JSONL."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _worked(split: Split, count: int, made: Made) -> list[Row]:
    return [
        {"prompt": p.prompt, "solution": p.solution}
        for p in reasoning.distinct(split, count, _SEED, made.skill)
    ]


def _asked(split: Split, count: int, made: Made) -> list[Row]:
    return [
        {"id": f"{split}-{number:04d}", "prompt": p.prompt, "answer": p.answer, "family": p.family}
        for number, p in enumerate(reasoning.distinct(split, count, _SEED, made.skill))
    ]


def _replayed(made: Made) -> list[Row]:
    """Known facts that judge nothing, and the rare ones, which the model knows in part."""
    rng = random.Random(_SEED)
    rows: list[Row] = []
    known = [(fact, 4) for fact in world.known(made.known) if fact.split is Split.REPLAY]
    for fact, most in (*known, *((fact, 2) for fact in world.rare(made.known))):
        found = list(dict.fromkeys(world.question(fact, rng)[0] for _ in range(8)))[:most]
        rows.append({"prompt": found[0], "answer": fact.answer, "paraphrases": found[1:]})
    return rows


def _known(split: Split, made: Made) -> list[Row]:
    rng = random.Random(_SEED)
    facts = [fact for fact in world.known(made.known) if fact.split is split]
    asked = {world.question(fact, rng)[0]: fact for fact in facts}
    return [
        {"id": f"{split}-{number:04d}", "prompt": prompt, "answer": fact.answer}
        for number, (prompt, fact) in enumerate(asked.items())
    ]


def main(arguments: list[str] | None = None) -> int:
    """`python -m mini.export`: write all files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", choices=list(MODELS), default="mini")
    parser.add_argument("--out", type=Path, help="by default models/palorad-MODEL/data")
    given = parser.parse_args(arguments)
    out: Path = given.out or folder(given.model) / "data"
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in files(MODELS[given.model]).items():
        (out / name).write_text(render(rows), "utf-8")
        sys.stdout.write(f"{out / name}: {len(rows)} lines\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
