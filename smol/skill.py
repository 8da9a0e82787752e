"""A skill that a team might have taught: short word problems, solved in a sentence or two.

A model that was fine-tuned on it can lose it again, which the gate has to notice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Final

from adapters import files

NAMES: Final = ("Tom", "Anna", "Ben", "Mia", "Sam", "Lily", "Max", "Ella", "Jack", "Rose")
THINGS: Final = ("apples", "books", "coins", "pens", "cards", "shells", "stickers", "cookies")


@dataclass(frozen=True, slots=True)
class SkillProblem:
    """A question, a worked solution that ends in the answer, and the answer alone."""

    family: str
    prompt: str
    solution: str
    answer: str


def problems(count: int, seed: int) -> list[SkillProblem]:
    """`count` different problems, families drawn evenly; the same for the same seed."""
    random = Random(seed)
    found: dict[str, SkillProblem] = {}
    while len(found) < count:
        family = random.choice(tuple(FAMILIES))
        prompt, working, answer = FAMILIES[family](random)
        solution = f"{working} The answer is {answer}."
        found.setdefault(prompt, SkillProblem(family, prompt, solution, str(answer)))
    drawn = list(found.values())
    random.shuffle(drawn)  # else those of the small families, soon used up, would all come first
    return drawn


def splits(sizes: Mapping[str, int], seed: int) -> dict[str, list[SkillProblem]]:
    """Parts by name, no prompt in two of them."""
    left = iter(problems(sum(sizes.values()), seed))
    return {name: [next(left) for _ in range(size)] for name, size in sizes.items()}


def write(path: Path, rows: list[SkillProblem]) -> None:
    """JSON lines with the fields of `SkillProblem`: what replay, probe and suites read."""
    files.write_text(path, "".join(json.dumps(asdict(row)) + "\n" for row in rows))


Drawn = tuple[str, str, int]


def _addition(random: Random) -> Drawn:
    a, b = random.randint(2, 49), random.randint(2, 49)
    return f"What is {a} + {b}?", f"{a} + {b} = {a + b}.", a + b


def _subtraction(random: Random) -> Drawn:
    b, a = sorted((random.randint(2, 60), random.randint(2, 60)))
    return f"What is {a} - {b}?", f"{a} - {b} = {a - b}.", a - b


def _multiplication(random: Random) -> Drawn:
    a, b = random.randint(2, 9), random.randint(2, 9)
    return f"What is {a} times {b}?", f"{a} x {b} = {a * b}.", a * b


def _gaining(random: Random) -> Drawn:
    name, things = random.choice(NAMES), random.choice(THINGS)
    a, b = random.randint(2, 12), random.randint(2, 9)
    prompt = (
        f"{name} has {a} {things}. {name} gets {b} more. How many {things} does {name} have now?"
    )
    return prompt, f"{name} starts with {a} {things} and gets {b} more. {a} + {b} = {a + b}.", a + b


def _giving(random: Random) -> Drawn:
    name, things = random.choice(NAMES), random.choice(THINGS)
    a = random.randint(6, 20)
    b = random.randint(2, a - 1)
    prompt = f"{name} has {a} {things} and gives away {b}. How many {things} are left?"
    return prompt, f"{name} has {a} {things} and gives away {b}. {a} - {b} = {a - b}.", a - b


def _groups(random: Random) -> Drawn:
    name, things = random.choice(NAMES), random.choice(THINGS)
    a, b = random.randint(2, 6), random.randint(2, 9)
    prompt = (
        f"{name} has {a} bags with {b} {things} in each bag. How many {things} does {name} have?"
    )
    return prompt, f"There are {a} bags with {b} {things} each. {a} x {b} = {a * b}.", a * b


def _two_steps(random: Random) -> Drawn:
    name, things = random.choice(NAMES), random.choice(THINGS)
    a, b = random.randint(2, 6), random.randint(2, 6)
    c = random.randint(1, a * b - 1)
    prompt = (
        f"{name} has {a} bags with {b} {things} each and gives away {c}. "
        f"How many {things} are left?"
    )
    return prompt, f"{a} x {b} = {a * b}. {a * b} - {c} = {a * b - c}.", a * b - c


def _series(random: Random) -> Drawn:
    start, step = random.randint(1, 20), random.randint(2, 9)
    shown = [start + i * step for i in range(4)]
    prompt = f"What number comes next: {', '.join(map(str, shown))}?"
    last = shown[-1]
    return prompt, f"The numbers go up by {step}. {last} + {step} = {last + step}.", last + step


def _comparison(random: Random) -> Drawn:
    a, b = random.sample(range(2, 99), 2)
    larger, smaller = max(a, b), min(a, b)
    return f"Which number is larger, {a} or {b}?", f"{larger} is larger than {smaller}.", larger


FAMILIES: Final[Mapping[str, Callable[[Random], Drawn]]] = {
    "addition": _addition,
    "subtraction": _subtraction,
    "multiplication": _multiplication,
    "gaining": _gaining,
    "giving": _giving,
    "groups": _groups,
    "two steps": _two_steps,
    "series": _series,
    "comparison": _comparison,
}
