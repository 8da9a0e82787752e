"""A server in the same process that answers as it is told and fails when it is told."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from daemon.serving.protocol import (
    Completion,
    Loaded,
    PromptLogprob,
    ServerRefused,
    ServerUnreachable,
)

Brain = Callable[[str], str]
Fault = Callable[[str, str, int], Exception | None]


def no_fault(_model: str, _prompt: str, _time: int) -> Exception | None:
    return None


def unreachable(_model: str, _prompt: str, _time: int) -> Exception | None:
    return ServerUnreachable("no answer within 1 s")


class ScriptedServer:
    """`brains` answers by model; `fault(model, prompt, nth time)` may refuse a request.

    `cut` says which answers reach their greatest length before their end. `losses` is what each
    model loses on every token of a given text, each of rank `rank`; it scores none without.
    """

    def __init__(self, brains: Mapping[str, Brain], fault: Fault = no_fault) -> None:
        self.url = "http://scripted"
        self.brains = dict(brains)
        self.fault = fault
        self.alive = True
        self.losses: dict[str, float] = {}
        self.rank = 1
        self.cut: Callable[[str], bool] = lambda _prompt: False
        self.asked: Counter[tuple[str, str]] = Counter()
        self.forms: dict[str, str] = {}
        self.busiest = 0
        self.mixed = False
        self._under_way: Counter[str] = Counter()

    def count(self, model: str) -> int:
        return sum(n for (name, _), n in self.asked.items() if name == model)

    async def healthy(self) -> bool:
        return self.alive

    async def loaded(self) -> Mapping[str, Loaded]:
        return {name: Loaded(name, f"/{name}", None) for name in self.brains}

    async def load(self, name: str, path: str) -> None:
        raise ServerRefused("evaluation never loads", status=500)

    async def unload(self, name: str) -> None:
        raise ServerRefused("evaluation never unloads", status=500)

    async def complete(
        self, model: str, prompts: Sequence[str], *, max_tokens: int, salt: str = ""
    ) -> tuple[Completion, ...]:
        texts = await self._answer(model, prompts, "plain")
        return tuple(self._said(model, p, t) for p, t in zip(prompts, texts, strict=True))

    async def chat(self, model: str, prompt: str, *, max_tokens: int) -> Completion:
        (text,) = await self._answer(model, [prompt], "chat")
        return self._said(model, prompt, text)

    def _said(self, model: str, prompt: str, text: str) -> Completion:
        return Completion(text, model, finish_reason="length" if self.cut(prompt) else "stop")

    async def score(
        self, model: str, texts: Sequence[Sequence[int]]
    ) -> tuple[tuple[PromptLogprob, ...], ...]:
        if model not in self.losses:
            raise ServerRefused(f"{model} scores no text", status=400)
        return tuple(
            (PromptLogprob(-self.losses[model], self.rank),) * (len(text) - 1) for text in texts
        )

    async def _answer(self, model: str, prompts: Sequence[str], form: str) -> list[str]:
        if model not in self.brains:
            raise ServerRefused(f"the model {model} does not exist", status=404)
        self._under_way[model] += len(prompts)
        self.busiest = max(self.busiest, self._under_way.total())
        self.mixed |= sum(n > 0 for n in self._under_way.values()) > 1
        try:
            await asyncio.sleep(0)
            for prompt in prompts:
                self.asked[model, prompt] += 1
                self.forms[prompt] = form
                if problem := self.fault(model, prompt, self.asked[model, prompt]):
                    raise problem
            return [self.brains[model](prompt) for prompt in prompts]
        finally:
            self._under_way[model] -= len(prompts)
