"""What the real model knows and can do, in its own words: replay, suites and report for palorad.

A suite made for another model proves nothing of this one, and a bare label is not how it answers.
So the base is asked as `palorad init` asks it, and what it says surely (right in two paraphrases)
is kept as it says it. What it can do is a rule of language, the plural of a noun;
arithmetic it cannot.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Final

from adapters import files
from adapters.generate import Generator, Request
from daemon.onboarding.asking import BaseAnswer
from daemon.onboarding.known_facts import replay_lines, shared_out, suite_lines, surely_known
from daemon.onboarding.own_problems import PLURAL, nouns, plural, plural_family
from daemon.onboarding.questions import shipped
from policies.gate.grading import grade
from policies.onboarding.agreement import first_sentence
from smol.checkpoint import FOLDER

SEED: Final = 5
TOKENS: Final = 24
SHARES: Final = {"known-replay": 0.36, "locality": 0.44, "locality-report": 0.2}
WORDS: Final = {"skill": 150, "reasoning-gate": 220, "reasoning-report": 300}


def main() -> None:
    """Ask once; nothing is done where the files are already there."""
    parser = argparse.ArgumentParser(prog="python -m smol.known", description=__doc__)
    parser.add_argument("--model", type=Path, default=FOLDER)
    chosen = parser.parse_args()
    print(make(chosen.model))


def make(model: Path) -> Path:
    """`data/` in the model's folder; whole or not at all."""
    out = model / "data"
    if out.exists():
        return out
    generator = Generator(model)
    known = surely_known(lambda _, prompts, __: say(generator, prompts), shipped())
    parts = shared_out(known, SHARES, SEED)
    words = split_words(nouns(), WORDS)
    skill = say(generator, [PLURAL.format(word) for word in words["skill"]])
    with tempfile.TemporaryDirectory(dir=model, prefix=".data-") as folder:
        made = Path(folder) / "data"
        made.mkdir()
        _write(made / "known-replay.jsonl", replay_lines(parts.pop("known-replay")))
        for name, facts in parts.items():
            _write(made / f"{name}.jsonl", suite_lines(facts))
        traces = [
            {"prompt": PLURAL.format(word), "solution": first_sentence(reply.text)}
            for word, reply in zip(words["skill"], skill, strict=True)
            if grade("contains", reply.text, plural(word))
        ]
        _write(made / "skill.jsonl", traces)
        for name in ("reasoning-gate", "reasoning-report"):
            problems = (
                {
                    "prompt": PLURAL.format(word),
                    "answer": plural(word),
                    "family": plural_family(word),
                }
                for word in words[name]
            )
            _write(made / f"{name}.jsonl", problems)
        for path in (made, *made.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        shutil.move(made, out)
    return out


def say(generator: Generator, prompts: Sequence[str], tokens: int = TOKENS) -> list[BaseAnswer]:
    """The base's greedy answers, each of so many `tokens` at most."""
    requests = [
        Request(generator.encode_chat([{"role": "user", "content": prompt}]), tokens)
        for prompt in prompts
    ]
    return [
        BaseAnswer(answer.text.strip(), answer.finish_reason == "length")
        for answer in generator.generate(None, requests)
    ]


def split_words(words: Sequence[str], sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Parts of the given sizes at random, no word in two of them."""
    order = Random(SEED).sample(list(words), sum(sizes.values()))
    rest = iter(order)
    return {name: [next(rest) for _ in range(size)] for name, size in sizes.items()}


def _write(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    files.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()
