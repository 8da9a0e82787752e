"""The exceptions of palorad; each carries one clear line for the person who reads it."""

from __future__ import annotations


class PaloradError(Exception):
    """The root of all of them."""


class InvalidFacts(PaloradError, ValueError):
    """Lines that are no facts: `problems` holds (line number, reason) in their order."""

    def __init__(self, problems: tuple[tuple[int, str], ...]) -> None:
        self.problems = problems
        shown = "; ".join(f"line {line}: {reason}" for line, reason in problems[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        super().__init__(shown + more)
