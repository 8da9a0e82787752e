"""The identity probe: whether a server answers with the very adapter that was published."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from daemon.serving.protocol import Completion
from policies.errors import ServerUnusable

FILE = "identity.json"


class Answered(BaseModel):
    """One prompt: greedy tokens and log-probabilities of who answered."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


class IdentityItem(Answered):
    """One prompt as the adapter answers it, and as the bare base does."""

    base_token_ids: tuple[int, ...]
    base_logprobs: tuple[float, ...]


class Identity(BaseModel):
    """What the training child stored beside a revision."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    max_tokens: int
    items: tuple[IdentityItem, ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        """What to ask."""
        return tuple(item.prompt for item in self.items)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a log-probability (natural logarithm) may be off.

    `exact`: the same arithmetic (fp32 on both sides), every token must be the same. Otherwise a
    near tie may break the other way; what follows it is not compared.
    """

    logprob: float = 0.02
    exact: bool = True


EXACT = Tolerance()
CLOSE = Tolerance(logprob=0.5, exact=False)


def read(directory: Path) -> Identity:
    """The identity of a published revision; `ServerUnusable` where it is missing or damaged."""
    try:
        identity = Identity.model_validate(json.loads((directory / FILE).read_text()))
    except (OSError, ValueError, ValidationError) as error:
        line = str(error).splitlines()[0]
        raise ServerUnusable(f"{directory / FILE} cannot be read: {line}") from error
    if not identity.items:
        raise ServerUnusable(f"{directory / FILE} holds no prompt to verify with")
    return identity


def mismatch(
    identity: Identity, answers: Sequence[Completion], tolerance: Tolerance = EXACT
) -> str | None:
    """Why these answers are not the adapter's, or None when they are.

    Every answer must agree with the stored tokens and log-probabilities, and together they must
    lie nearer to the adapter than to the bare base.
    """
    if (reason := differs(identity.items, answers, tolerance)) is not None:
        return reason
    own = bare = 0.0
    for item, answer in zip(identity.items, answers, strict=True):
        own += _distance(item.token_ids, item.logprobs, answer)
        bare += _distance(item.base_token_ids, item.base_logprobs, answer)
    if own >= bare:
        return "answers like the bare base: the adapter is not in force"
    return None


def differs(
    stored: Sequence[Answered], answers: Sequence[Completion], tolerance: Tolerance = EXACT
) -> str | None:
    """Where answers differ from the stored ones, prompt by prompt; None where they do not."""
    if len(answers) != len(stored):
        return f"{len(answers)} answers to {len(stored)} prompts"
    for item, answer in zip(stored, answers, strict=True):
        if not answer.token_ids or len(answer.logprobs) != len(answer.token_ids):
            return f"{item.prompt!r}: answered without tokens and log-probabilities"
        if not all(math.isfinite(value) for value in answer.logprobs):
            return f"{item.prompt!r}: log-probabilities are not finite numbers"
        reason = _differs(item, answer, tolerance)
        if reason is not None:
            return f"{item.prompt!r}: {reason}"
    return None


def base_mismatch(
    identity: Identity, answers: Sequence[Completion], tolerance: Tolerance = EXACT
) -> str | None:
    """Why these answers are not those of the base under the adapter, or None when they are."""
    bare = [
        Answered(prompt=item.prompt, token_ids=item.base_token_ids, logprobs=item.base_logprobs)
        for item in identity.items
    ]
    return differs(bare, answers, tolerance)


def _differs(item: Answered, answer: Completion, tolerance: Tolerance) -> str | None:
    if len(answer.token_ids) != len(item.token_ids):
        return f"{len(answer.token_ids)} tokens where {len(item.token_ids)} are stored"
    stored = zip(item.token_ids, item.logprobs, strict=True)
    given = zip(answer.token_ids, answer.logprobs, strict=True)
    for at, ((token, value), (other, found)) in enumerate(zip(stored, given, strict=True), 1):
        near = abs(found - value) <= tolerance.logprob
        if token != other:
            if near and not tolerance.exact:
                return None
            return f"token {at} is {other}, stored is {token}"
        if not near:
            return f"log-probability of token {at} is {found:.4f}, stored is {value:.4f}"
    return None


def _distance(tokens: Sequence[int], logprobs: Sequence[float], answer: Completion) -> float:
    """Summed |Δ log-probability| up to the first other token, which counts one."""
    total = 0.0
    given = zip(answer.token_ids, answer.logprobs, strict=True)
    for (token, value), (other, found) in zip(
        zip(tokens, logprobs, strict=False), given, strict=False
    ):
        if token != other:
            return total + 1.0
        total += abs(value - found)
    return total
