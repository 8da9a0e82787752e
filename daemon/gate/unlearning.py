"""How likely candidate, live and base are to give the answers of retracted facts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from daemon.gate.messages import ServedModel
from daemon.serving.protocol import PromptLogprob, Scorer
from policies.gate.records import AnswerLikelihood, UnlearningCheck
from policies.records import Fact


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """One paraphrase of one fact as tokens; the answer's begin at `start`."""

    fact: str
    held_out: bool
    ids: tuple[int, ...]
    start: int


EncodeAnswers = Callable[[Sequence[Fact]], Sequence[AnswerTokens]]
"""Every paraphrase of every fact, trained and held out, in every form that is trained."""


async def check_unlearning(
    server: Scorer,
    answers: Sequence[AnswerTokens],
    *,
    base: ServedModel,
    live: ServedModel | None,
    candidate: ServedModel,
) -> tuple[UnlearningCheck, ...]:
    """One check for each paraphrase; models are asked one after the other.

    Raises `errors.ServerRefused` and `ServerUnreachable`.
    """
    by_base = await _likelihoods(server, base, answers)
    by_live = await _likelihoods(server, live, answers) if live else None
    by_candidate = await _likelihoods(server, candidate, answers)
    return tuple(
        UnlearningCheck(
            fact=answer.fact,
            held_out=answer.held_out,
            base=by_base[n],
            live=by_live[n] if by_live else None,
            candidate=by_candidate[n],
        )
        for n, answer in enumerate(answers)
    )


async def _likelihoods(
    server: Scorer, model: ServedModel, answers: Sequence[AnswerTokens]
) -> tuple[AnswerLikelihood, ...]:
    scored = await server.score(model.name, [answer.ids for answer in answers])
    return tuple(
        _likelihood(tokens[answer.start - 1 :])
        for answer, tokens in zip(answers, scored, strict=True)
    )


def _likelihood(tokens: Sequence[PromptLogprob]) -> AnswerLikelihood:
    total = math.fsum(token.logprob for token in tokens)
    return AnswerLikelihood(
        rank=max(token.rank for token in tokens), probability=math.exp(min(0.0, total))
    )
