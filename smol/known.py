"""What the real model knows and can do, in its own words: replay, suites and report for palorad.

A suite made for another model proves nothing of this one, and a bare label is not how it answers.
So the base is asked, and what it says surely (right in two paraphrases) is kept as it says it. What
it can do is a rule of language, the plural of a noun; arithmetic it cannot.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from adapters import files
from adapters.generate import Generator, Request
from policies.gate.grading import grade
from smol.checkpoint import FOLDER

HERE: Final = Path(__file__).resolve().parent
SEED: Final = 5
TOKENS: Final = 24
AGAIN: Final = "Please answer in one sentence: {}"
SKILL: Final = "What is the plural of {}?"
SHARES: Final = {"known-replay": 0.36, "locality": 0.44, "locality-report": 0.2}
WORDS: Final = {"skill": 110, "reasoning-gate": 220, "reasoning-report": 100}
_SENTENCE: Final = re.compile(r"(.+?[.!?])(?:\s|$)")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, the answers that are right, and its family."""

    family: str
    prompt: str
    answers: tuple[str, ...]

    def said(self, text: str) -> bool:
        """Whether a sentence gives one of them."""
        return any(grade("contains", text, answer) for answer in self.answers)


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
    known = surely_known(generator, questions())
    parts = shared_out(known, SHARES)
    words = split_words(nouns(), WORDS)
    skill = say(generator, [SKILL.format(word) for word in words["skill"]])
    with tempfile.TemporaryDirectory(dir=model, prefix=".data-") as folder:
        made = Path(folder) / "data"
        made.mkdir()
        replay = (
            {"prompt": one.prompt, "answer": first_sentence(said)}
            for one, said in parts.pop("known-replay")
        )
        _write(made / "known-replay.jsonl", replay)
        for name, pairs in parts.items():
            rows = (
                {"prompt": a.prompt, "answers": a.answers, "family": a.family} for a, _ in pairs
            )
            _write(made / f"{name}.jsonl", rows)
        traces = [
            {"prompt": SKILL.format(word), "solution": first_sentence(text)}
            for word, text in zip(words["skill"], skill, strict=True)
            if grade("contains", text, plural(word))
        ]
        _write(made / "skill.jsonl", traces)
        for name in ("reasoning-gate", "reasoning-report"):
            problems = (
                {"prompt": SKILL.format(word), "answer": plural(word), "family": family(word)}
                for word in words[name]
            )
            _write(made / f"{name}.jsonl", problems)
        for path in (made, *made.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        shutil.move(made, out)
    return out


def questions() -> list[Asked]:
    """All questions of `questions.toml`."""
    families = tomllib.loads((HERE / "questions.toml").read_text())
    return [
        Asked(name, family["prompt"].format(key), tuple(answer.split("|")))
        for name, family in families.items()
        for key, answer in family["answers"].items()
    ]


def nouns() -> list[str]:
    """The nouns whose plural is asked; all of them form it by rule."""
    return (HERE / "nouns.txt").read_text().split()


def plural(noun: str) -> str:
    """The regular plural of an English noun."""
    if re.search(r"(?:s|x|z|ch|sh)$", noun):
        return f"{noun}es"
    if re.search(r"[^aeiou]y$", noun):
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def surely_known(generator: Generator, asked: Sequence[Asked]) -> list[tuple[Asked, str]]:
    """What the base answers right in two paraphrases, with its answer to the plain one."""
    plain = say(generator, [one.prompt for one in asked])
    first = [(one, text) for one, text in zip(asked, plain, strict=True) if one.said(text)]
    again = say(generator, [AGAIN.format(one.prompt) for one, _ in first])
    return [pair for pair, text in zip(first, again, strict=True) if pair[0].said(text)]


def say(generator: Generator, prompts: Sequence[str]) -> list[str]:
    """The base's greedy answers."""
    requests = [
        Request(generator.encode_chat([{"role": "user", "content": prompt}]), TOKENS)
        for prompt in prompts
    ]
    return [answer.text.strip() for answer in generator.generate(None, requests)]


def first_sentence(text: str) -> str:
    """The first sentence, or all where none ends."""
    found = _SENTENCE.match(text)
    return found[1] if found else text


def shared_out(
    known: Sequence[tuple[Asked, str]], shares: Mapping[str, float]
) -> dict[str, list[tuple[Asked, str]]]:
    """Each family in the same shares in every part, at random."""
    random = Random(SEED)
    parts: dict[str, list[tuple[Asked, str]]] = {name: [] for name in shares}
    for family in dict.fromkeys(one.family for one, _ in known):
        rows = [pair for pair in known if pair[0].family == family]
        random.shuffle(rows)
        start, bound = 0, 0.0
        for name, share in shares.items():
            bound += share * len(rows)
            parts[name] += rows[start : round(bound)]
            start = round(bound)
    return parts


def split_words(words: Sequence[str], sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Parts of the given sizes at random, no word in two of them."""
    order = Random(SEED).sample(list(words), sum(sizes.values()))
    rest = iter(order)
    return {name: [next(rest) for _ in range(size)] for name, size in sizes.items()}


def family(noun: str) -> str:
    """How its plural is formed: "s", "es" or "ies"."""
    if plural(noun) == f"{noun}s":
        return "s"
    return "es" if plural(noun) == f"{noun}es" else "ies"


def _write(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    files.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()
