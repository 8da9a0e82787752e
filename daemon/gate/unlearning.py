"""Retracted facts put to a candidate, to what is live and to the reference, over the endpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.examples import encode, forms
from adapters.models import load_tokenizer
from daemon.gate.measuring import ServedModel
from daemon.serving.protocol import Scorer, Taken
from policies.gate.records import AnswerLikelihood, UnlearningCheck
from policies.records import Fact


@dataclass(frozen=True, slots=True)
class Asked:
    """One paraphrase of one fact as tokens; the answer's begin at `start`."""

    fact: str
    held_out: bool
    ids: tuple[int, ...]
    start: int


async def recollect(
    server: Scorer,
    facts: Sequence[Fact],
    model_dir: Path,
    *,
    reference: ServedModel,
    live: ServedModel | None,
    candidate: ServedModel,
) -> tuple[UnlearningCheck, ...]:
    """Every paraphrase of every fact, trained and held out, in every form that is trained.

    Models are asked one after the other. Raises `seams.ServerRefused` and `ServerUnreachable`.
    """
    asked = tuple(_asked(facts, model_dir))
    texts = [one.ids for one in asked]
    by_model: dict[str, tuple[AnswerLikelihood, ...]] = {}
    for target in (reference, *((live,) if live else ()), candidate):
        taken = await server.score(target.name, texts)
        by_model[target.name] = tuple(
            _recall(row[one.start - 1 :]) for one, row in zip(asked, taken, strict=True)
        )
    return tuple(
        UnlearningCheck(
            fact=one.fact,
            held_out=one.held_out,
            reference=by_model[reference.name][n],
            live=by_model[live.name][n] if live else None,
            candidate=by_model[candidate.name][n],
        )
        for n, one in enumerate(asked)
    )


def _asked(facts: Sequence[Fact], model_dir: Path) -> Iterator[Asked]:
    """The answer's tokens without the end-of-text: what follows an answer tells nothing of it."""
    tokenizer = load_tokenizer(model_dir)
    for fact in facts:
        for held_out, paraphrases in ((False, fact.training_prompts), (True, fact.eval_prompts)):
            for paraphrase in paraphrases:
                for form in forms(tokenizer):
                    whole = encode(tokenizer, paraphrase, fact.answer, form, key=fact.id)
                    end = _end(tokenizer, whole.ids, whole.start)
                    yield Asked(fact.id, held_out, whole.ids[:end], whole.start)


def _end(tokenizer: object, ids: Sequence[int], start: int) -> int:
    special = set(getattr(tokenizer, "all_special_ids", ()))
    end = len(ids)
    while end > start + 1 and ids[end - 1] in special:
        end -= 1
    return end


def _recall(taken: Sequence[Taken]) -> AnswerLikelihood:
    total = sum(one.logprob for one in taken)
    return AnswerLikelihood(
        rank=max(one.rank for one in taken), probability=min(1.0, math.exp(min(0.0, total)))
    )
