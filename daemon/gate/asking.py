"""Many questions to one model on one server: bounded, retried, in their order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from daemon.gate.suites import PromptForm
from daemon.serving.protocol import Completion, Server, ServerRefused, ServerUnreachable
from policies.errors import PaloradError

Sleep = Callable[[float], Awaitable[None]]

# Plain prompts that share one HTTP request; chat requests always hold one message.
_GROUP: Final = 8
CUT: Final = "length"
_TOO_BUSY: Final = frozenset({408, 409, 425, 429})
_NO_USE_TO_GO_ON: Final = frozenset({401, 403, 404})


class ModelNotServed(PaloradError, RuntimeError):
    """The server does not let this model be asked at all."""


@dataclass(frozen=True, slots=True)
class Query:
    """One prompt in the form in which it is put."""

    id: str
    prompt: str
    form: PromptForm


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What came back: `text`, or None and the `problem` that outlasted every retry.

    `cut` says that the answer reached its greatest length before its end.
    """

    id: str
    text: str | None
    problem: str = ""
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Asker:
    """Greedy answers from one server.

    `concurrency` bounds the prompts under way at once. A request is tried `attempts` times,
    with `pause_s` seconds before the second try and four times as long before each further one.
    """

    server: Server
    concurrency: int
    attempts: int = 3
    pause_s: float = 1.0
    sleep: Sleep = field(default=asyncio.sleep)

    async def ask(
        self, model: str, questions: Sequence[Query], *, max_tokens: int
    ) -> tuple[QueryResult, ...]:
        """One reply for each question, in their order.

        Raises `ModelNotServed` when the server does not know the model or refuses the key, and
        `ServerUnreachable` when it is gone: neither says anything about the model.
        """
        size = max(1, min(_GROUP, self.concurrency // 2))
        # Like lengths together: less padding.
        ordered = sorted(questions, key=lambda q: len(q.prompt))
        plain = [q for q in ordered if q.form is PromptForm.PLAIN]
        groups = [plain[n : n + size] for n in range(0, len(plain), size)]
        chats = [[q] for q in ordered if q.form is PromptForm.CHAT]
        replies = await self._all(model, groups, max_tokens, self.concurrency // size)
        replies |= await self._all(model, chats, max_tokens, self.concurrency)
        if questions and all(r.text is None for r in replies.values()):
            await self._refuse_if_gone(replies[questions[0].id].problem)
        return tuple(replies[q.id] for q in questions)

    async def _all(
        self, model: str, groups: list[list[Query]], max_tokens: int, at_once: int
    ) -> dict[str, QueryResult]:
        room = asyncio.Semaphore(max(1, at_once))

        async def one(group: list[Query]) -> list[QueryResult]:
            async with room:
                return await self._group(model, group, max_tokens)

        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(one(group)) for group in groups]
        except ExceptionGroup as several:
            raise several.exceptions[0] from None
        return {reply.id: reply for task in running for reply in task.result()}

    async def _group(self, model: str, group: list[Query], max_tokens: int) -> list[QueryResult]:
        answers, problem, alone = await self._tried(model, group, max_tokens)
        if answers is not None:
            return [
                QueryResult(q.id, answer.text, cut=answer.finish_reason == CUT)
                for q, answer in zip(group, answers, strict=True)
            ]
        if not alone or len(group) == 1:
            return [QueryResult(q.id, None, problem) for q in group]
        # One prompt that the server refuses must not take its neighbours with it.
        return [(await self._group(model, [q], max_tokens))[0] for q in group]

    async def _tried(
        self, model: str, group: list[Query], max_tokens: int
    ) -> tuple[list[Completion] | None, str, bool]:
        problem, pause = "", self.pause_s
        for attempt in range(self.attempts):
            if attempt:
                await self.sleep(pause)
                pause *= 4
            try:
                return await self._request(model, group, max_tokens), "", False
            except ServerRefused as error:
                problem = str(error)
                if error.status in _NO_USE_TO_GO_ON:
                    raise ModelNotServed(f"{model} cannot be asked: {error}") from error
                if error.status < 500 and error.status not in _TOO_BUSY:
                    return None, problem, True
            except ServerUnreachable as error:
                problem = str(error)
        return None, problem, False

    async def _request(self, model: str, group: list[Query], max_tokens: int) -> list[Completion]:
        if group[0].form is PromptForm.CHAT:
            return [await self.server.chat(model, group[0].prompt, max_tokens=max_tokens)]
        prompts = [q.prompt for q in group]
        answers = await self.server.complete(model, prompts, max_tokens=max_tokens)
        if len(answers) != len(prompts):
            raise ServerRefused(
                f"{len(answers)} answers to {len(prompts)} prompts", status=502, body=""
            )
        return list(answers)

    async def _refuse_if_gone(self, problem: str) -> None:
        try:
            healthy = await self.server.healthy()
        except ServerUnreachable:
            healthy = False
        if not healthy:
            raise ServerUnreachable(f"{self.server.url} no longer answers: {problem}")
