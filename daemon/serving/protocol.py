"""The protocols between the daemon and what it drives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from policies.errors import ServerRefused, ServerUnreachable

__all__ = [
    "Completion",
    "Loaded",
    "PromptLogprob",
    "Scorer",
    "Server",
    "ServerRefused",
    "ServerUnreachable",
]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model as one replica lists it under `/v1/models`."""

    name: str
    root: str
    parent: str | None


@dataclass(frozen=True, slots=True)
class Completion:
    """One greedy answer. `model` is who answered, `revision` what the alias's header said."""

    text: str
    model: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish_reason: str = "stop"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PromptLogprob:
    """How a model takes one token of a given text: natural log-probability, and rank from 1."""

    logprob: float
    rank: int


class Scorer(Protocol):
    """What tells how a model takes given text."""

    async def score(
        self, model: str, texts: Sequence[Sequence[int]]
    ) -> tuple[tuple[PromptLogprob, ...], ...]:
        """How a model takes each text's own tokens, from the second on; texts as token ids."""
        ...


class Server(Scorer, Protocol):
    """One replica of vLLM, or the embedded server: the same HTTP API.

    Methods raise `ServerUnreachable` when there is no answer and `ServerRefused` (with status
    and body) when the answer is no.
    """

    url: str

    async def healthy(self) -> bool:
        """Whether `/health` answers 200."""
        ...

    async def loaded(self) -> Mapping[str, Loaded]:
        """What `/v1/models` lists, by name."""
        ...

    async def load(self, name: str, path: str) -> None:
        """Load an adapter; already loaded from the same path is success."""
        ...

    async def unload(self, name: str) -> None:
        """Unload an adapter; not loaded is success."""
        ...

    async def complete(
        self, model: str, prompts: Sequence[str], *, max_tokens: int, salt: str = ""
    ) -> tuple[Completion, ...]:
        """Greedy completions of plain prompts, in their order."""
        ...

    async def chat(self, model: str, prompt: str, *, max_tokens: int) -> Completion:
        """Greedy answer to one user message."""
        ...
