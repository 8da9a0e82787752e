"""Further paraphrases by the live model, asked for through the endpoint before a plan is
trained."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from daemon.ledger.ledger import Ledger
from daemon.ledger.records import PlanHead
from daemon.serving.protocol import Completion
from policies.errors import ServerRefused, ServerUnreachable
from policies.facts.model_paraphrases import candidates, check, request, survives
from policies.facts.paraphrases import ParaphrasePolicy
from policies.records import Fact

AT_ONCE: Final = 8
TOKENS: Final = 160

log = structlog.get_logger(__name__)


class Chat(Protocol):
    """What is needed of a replica."""

    async def chat(self, model: str, prompt: str, *, max_tokens: int) -> Completion:
        """Greedy answer to one user message."""
        ...


class Paraphraser:
    """Asks for paraphrases of a plan's first facts, as far as the budget goes, and keeps them.

    What was asked once is never asked again. A server that does not answer costs the paraphrases,
    not the plan.
    """

    def __init__(
        self,
        ledger: Ledger,
        server: Callable[[], Chat],
        alias: str,
        policy: ParaphrasePolicy,
    ) -> None:
        self._ledger = ledger
        self._server = server
        self._alias = alias
        self._policy = policy

    async def ready(self, plan: PlanHead) -> bool:
        """Whether everything that the budget allows has been asked; some more of it otherwise."""
        count, most = self._policy.by_model, self._policy.facts_by_model
        if not most:
            return True
        facts = self._ledger.paraphrases.missing(plan.id, most)[:AT_ONCE]
        if not facts:
            return True
        try:
            found = await asyncio.gather(*(self._ask(fact, count) for fact in facts))
        except (ServerUnreachable, ServerRefused) as error:
            log.warning("no paraphrases by the live model", plan=plan.id, reason=str(error))
            return True
        self._ledger.paraphrases.keep(
            {fact.id: paraphrases for fact, paraphrases in zip(facts, found, strict=True)}
        )
        return False

    async def _ask(self, fact: Fact, count: int) -> tuple[str, ...]:
        server, kept = self._server(), []
        said = await server.chat(self._alias, request(fact, count), max_tokens=TOKENS)
        for paraphrase in candidates(fact, said.text, count):
            answer = await server.chat(self._alias, check(fact, paraphrase), max_tokens=TOKENS)
            if survives(fact, answer.text):
                kept.append(paraphrase)
        return tuple(kept)
