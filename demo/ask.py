"""Asking the live endpoint as any client would, and scoring what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from daemon.serving.connections import Connections
from policies.errors import PaloradError


class EndpointFailed(PaloradError):
    """The live endpoint gave no usable answer."""


@dataclass(frozen=True, slots=True)
class DemoQuestion:
    """One question of the demonstration; `group` is the file or family it belongs to, and an answer
    in `also` is right as well.
    """

    id: str
    group: str
    prompt: str
    answer: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DemoAnswer:
    """What was said, by which revision, and whether it is right."""

    question: DemoQuestion
    text: str
    revision: str
    correct: bool


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The live endpoint under its stable name."""

    url: str
    model: str
    concurrency: int = 96
    timeout_s: float = 600.0

    def ask(
        self,
        questions: Sequence[DemoQuestion],
        grade: Callable[[str, str], bool],
        max_tokens: int,
        tick: Callable[[int], None] = lambda _done: None,
    ) -> tuple[DemoAnswer, ...]:
        """Greedy chat answers in the order of the questions; raises `EndpointFailed`."""
        return asyncio.run(self._ask(questions, grade, max_tokens, tick))

    async def _ask(
        self,
        questions: Sequence[DemoQuestion],
        grade: Callable[[str, str], bool],
        max_tokens: int,
        tick: Callable[[int], None],
    ) -> tuple[DemoAnswer, ...]:
        gate = asyncio.Semaphore(self.concurrency)
        done = 0

        async def one(question: DemoQuestion) -> DemoAnswer:
            nonlocal done
            async with gate:
                text, revision = await self._chat(client, question.prompt, max_tokens)
            done += 1
            tick(done)
            correct = any(grade(text, said) for said in (question.answer, *question.also))
            return DemoAnswer(question, text, revision, correct)

        client = httpx.AsyncClient(
            base_url=self.url, timeout=self.timeout_s, transport=Connections(self.url)
        )
        async with client:
            # Like lengths together: a batch lasts as long as its longest answer.
            ordered = sorted(range(len(questions)), key=lambda n: len(questions[n].prompt))
            answers = await asyncio.gather(*(one(questions[n]) for n in ordered))
        return tuple(a for _, a in sorted(zip(ordered, answers, strict=True), key=lambda p: p[0]))

    async def _chat(
        self, client: httpx.AsyncClient, prompt: str, max_tokens: int
    ) -> tuple[str, str]:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        try:
            reply = await client.post("/v1/chat/completions", json=body)
        except httpx.HTTPError as error:
            said = str(error) or type(error).__name__
            raise EndpointFailed(f"{self.url} gave no answer: {said}") from error
        if reply.status_code != httpx.codes.OK:
            raise EndpointFailed(f"{self.url} answered {reply.status_code}: {reply.text[:200]}")
        content = reply.json()["choices"][0]["message"]["content"] or ""
        return content.strip(), reply.headers.get("x-palorad-revision", "")


def rate(answers: Sequence[DemoAnswer], group: str | None = None) -> float:
    """Share of right answers, of one group or of all; nan where nothing was asked."""
    chosen = [a.correct for a in answers if group is None or a.question.group == group]
    return sum(chosen) / len(chosen) if chosen else float("nan")
