"""Problems that palorad brings, for a user who has none: plurals, and sums of small numbers."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from typing import Final

from daemon.onboarding.problems import Problem

NOUNS: Final = Path(__file__).resolve().parent / "nouns.txt"
PLURAL: Final = "What is the plural of {}?"
SUMS: Final = 240
SEED: Final = 11


def own_problems() -> list[Problem]:
    """The plural of every noun, and sums and differences of numbers below a hundred."""
    return [*_plurals(), *_sums(SUMS, Random(SEED))]


def nouns() -> list[str]:
    """The nouns whose plural is asked; all of them form it by rule."""
    return NOUNS.read_text(encoding="utf-8").split()


def plural(noun: str) -> str:
    """The regular plural of an English noun."""
    if re.search(r"(?:s|x|z|ch|sh)$", noun):
        return f"{noun}es"
    if re.search(r"[^aeiou]y$", noun):
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def plural_family(noun: str) -> str:
    """How its plural is formed: "s", "es" or "ies"."""
    if plural(noun) == f"{noun}s":
        return "s"
    return "es" if plural(noun) == f"{noun}es" else "ies"


def _plurals() -> list[Problem]:
    return [
        Problem(PLURAL.format(noun), (plural(noun),), f"plural in {plural_family(noun)}")
        for noun in nouns()
    ]


def _sums(count: int, random: Random) -> list[Problem]:
    found: dict[str, Problem] = {}
    while len(found) < count:
        a, b = random.randint(2, 60), random.randint(2, 39)
        if random.random() < 0.5:
            problem = Problem(f"What is {a} plus {b}?", (str(a + b),), "sum")
        else:
            problem = Problem(f"What is {a + b} minus {b}?", (str(a),), "difference")
        found.setdefault(problem.prompt, problem)
    return list(found.values())
