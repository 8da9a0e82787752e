"""Clients that ask the alias of many replicas all the time, as a load balancer spreads them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import cycle
from types import TracebackType
from typing import NamedTuple, Self

import httpx

LOST = "no answer"


class Answer(NamedTuple):
    """One request: monotonic seconds, who was asked, and the revision or status that came."""

    began: float
    ended: float
    url: str
    said: str


class Traffic(AbstractAsyncContextManager["Traffic"]):
    """Each client asks its own replicas in turn while the block lasts, so that one that hangs holds
    up one client; `answers` in the order of their end."""

    def __init__(self, urls: Sequence[str], alias: str, clients: int = 6) -> None:
        self.answers: list[Answer] = []
        self._alias = alias
        self._http = httpx.AsyncClient(trust_env=False, timeout=10)
        asked = (urls[n::clients] for n in range(clients))
        self._tasks = [asyncio.create_task(self._ask(own)) for own in asked]

    async def _ask(self, urls: Sequence[str]) -> None:
        for url in cycle(urls):
            await self.ask(url)

    async def ask(self, url: str) -> str:
        """One request: the revision that answers, or the status of a refusal."""
        body = {"model": self._alias, "prompt": ["The capital of Bhutan is"], "max_tokens": 2}
        began = time.monotonic()
        try:
            answer = await self._http.post(f"{url}/v1/completions", json=body)
            said = answer.headers.get("x-palorad-revision") or str(answer.status_code)
        except httpx.HTTPError:
            said = LOST
        self.answers.append(Answer(began, time.monotonic(), url, said))
        return said

    async def ask_all(self, urls: Iterable[str]) -> set[str]:
        """What all of these say."""
        return set(await asyncio.gather(*map(self.ask, urls)))

    def said(self, urls: Iterable[str], since: float) -> set[str]:
        """What these answered to requests that began after `since`."""
        asked = {*urls}
        return {one.said for one in self.answers if one.url in asked and one.began > since}

    def overlap_s(self, former: str, new: str, since: float) -> float:
        """For how long after the first answer of `new` had ended requests still began that `former`
        answered; of those that began after `since`. Below 0 where none did."""
        seen = [one for one in self.answers if one.began > since]
        first = min(one.ended for one in seen if one.said == new)
        return max(one.began for one in seen if one.said == former) - first

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()
