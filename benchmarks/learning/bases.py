"""The models on which methods are compared, each with its probe and the text of its skill."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Final

from adapters.models import base_hash
from daemon.learning import read_examples
from mini import reasoning
from mini.splits import Split
from policies.records import Example

MINI: Final = Path("models/palorad-mini")


@dataclass(frozen=True)
class Base:
    """A checkpoint, the frozen probe of its skill, and what palorad may rehearse with it."""

    name: str
    model_dir: Path
    probe_dir: Path

    @cached_property
    def sha256(self) -> str:
        """The hash of the weights."""
        return base_hash(self.model_dir)

    @cached_property
    def known(self) -> tuple[Example, ...]:
        """Facts that the base knows and that may be rehearsed; none of them is ever asked."""
        return tuple(read_examples(MINI / "data/known-replay.jsonl", "answer"))

    def reasoning(self, examples: int | None = None) -> tuple[Example, ...]:
        """Solutions that may be rehearsed: the product's file, or so many fresh ones."""
        if examples is None:
            return tuple(read_examples(MINI / "data/reasoning-replay.jsonl", "solution"))
        made = islice(reasoning.problems(Split.REPLAY, 0), examples)
        return tuple(Example(prompt=p.prompt, completion=p.solution) for p in made)


BASES: Final = {"mini": Base("mini", MINI, MINI / "probe")}
