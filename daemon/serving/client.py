"""One replica over vLLM's HTTP API; the embedded server speaks the same."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from daemon.serving.adapter_load import AdapterLoad, adapter_load
from daemon.serving.protocol import Completion, Loaded, PromptLogprob
from daemon.serving.wire import Timeouts, Wire, decoded, require_ok, sensible
from policies.canary import Traffic
from policies.errors import ServerRefused, ServerUnreachable

PROMPTS_AT_ONCE = 64
# On vLLM's CPU build prompt log-probabilities of an adapter end the engine when another request
# shares the step (0.32.0: punica_cpu takes the indices of one row for all).
TEXTS_AT_ONCE = 1
MOST_METRICS = 8 * 2**20
__all__ = ["GatewayState", "HttpServer", "Timeouts"]


@dataclass(frozen=True, slots=True)
class GatewayState:
    """What the alias middleware of one server process says of itself.

    `instance_id` changes with every start and every sleep, `verified` are the models it routes,
    `in_flight` counts requests by the revision that answers them, all others under "", `answered`
    those that were answered since the process began or the revision was loaded. `asleep` holds from
    the request to sleep until the server has woken. `traffic`: what users asked each revision under
    the alias since there is a canary.
    """

    instance_id: str
    model: str | None
    revision: int | None
    verified: frozenset[str]
    in_flight: Mapping[str, int]
    answered: Mapping[str, int]
    asleep: bool = False
    traffic: Mapping[str, Traffic] = field(default_factory=dict)


class HttpServer:
    """Implements `daemon.serving.protocol.Server`. Give it back with `aclose`.

    With a `seed`, answers are drawn at temperature 1 instead of greedily.
    """

    def __init__(
        self,
        url: str,
        *,
        admin_key: str | None = None,
        user_key: str | None = None,
        timeouts: Timeouts | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        seed: int | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._decoding = {"temperature": 0} if seed is None else {"temperature": 1, "seed": seed}
        self.timeouts = timeouts or Timeouts()
        self._wire = Wire(self.url, admin_key, user_key, self.timeouts, transport)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._wire.aclose()

    async def healthy(self) -> bool:
        """Whether `/health` answers 200."""
        return await self._answers("/health")

    async def ready(self) -> bool:
        """Whether the stable name is routed here to a verified revision."""
        return await self._answers("/palorad/ready")

    async def _answers(self, path: str) -> bool:
        try:
            response = await self._wire.ask("GET", path, timeout_s=self.timeouts.health_s)
        except ServerUnreachable:
            return False
        return response.status_code == 200

    async def loaded(self) -> Mapping[str, Loaded]:
        """What `/v1/models` lists, by name."""
        listed = await self._json("GET", "/v1/models", timeout_s=self.timeouts.health_s)
        with sensible(self.url):
            return {
                str(card["id"]): Loaded(card["id"], card.get("root") or "", card.get("parent"))
                for card in listed["data"]
            }

    async def load(self, name: str, path: str) -> None:
        """Load an adapter; already loaded from the same path is success."""
        body = {"lora_name": name, "lora_path": path}
        try:
            await self._call("/v1/load_lora_adapter", body, timeout_s=self.timeouts.load_s)
        except ServerRefused as refused:
            if refused.status != 400:
                raise
            known = (await self.loaded()).get(name)
            if known is None or known.root != path:
                raise

    async def unload(self, name: str) -> None:
        """Unload an adapter; not loaded is success."""
        try:
            await self._call(
                "/v1/unload_lora_adapter", {"lora_name": name}, timeout_s=self.timeouts.load_s
            )
        except ServerRefused as refused:
            if refused.status != 404 or name in await self.loaded():
                raise

    async def complete(
        self,
        model: str,
        prompts: Sequence[str],
        *,
        max_tokens: int,
        salt: str = "",
        ignore_eos: bool = False,
    ) -> tuple[Completion, ...]:
        """Greedy completions of plain prompts, in their order, with tokens and log-probabilities.

        `salt` keeps the answers out of a prefix cache that others have filled.
        """
        answers: list[Completion] = []
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            body = {
                "model": model,
                "prompt": list(prompts[start : start + PROMPTS_AT_ONCE]),
                "max_tokens": max_tokens,
                **self._decoding,
                "logprobs": 1,
                "return_token_ids": True,
                "ignore_eos": ignore_eos,
            }
            if salt:
                body["cache_salt"] = salt
            response = await self._call("/v1/completions", body, timeout_s=self.timeouts.request_s)
            with sensible(self.url):
                answers += _completions(response)
        return tuple(answers)

    async def identify(
        self, model: str, prompts: Sequence[str], max_tokens: int, *, salt: str, limit_s: float
    ) -> tuple[Completion, ...]:
        """Completions of exactly `max_tokens` tokens, computed anew, all within `limit_s`."""
        try:
            async with asyncio.timeout(limit_s):
                return await self.complete(
                    model, prompts, max_tokens=max_tokens, salt=salt, ignore_eos=True
                )
        except TimeoutError as error:
            raise ServerUnreachable(
                f"{self.url} did not answer the identity check of {model} within {limit_s:g} s"
            ) from error

    async def score(
        self, model: str, texts: Sequence[Sequence[int]]
    ) -> tuple[tuple[PromptLogprob, ...], ...]:
        """How a model takes each text's own tokens, from the second on; texts as token ids.

        `ServerRefused` where the server gives none for a prompt (`prompt_logprobs`).
        """
        scored: list[tuple[PromptLogprob, ...]] = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            asked = [list(text) for text in texts[start : start + TEXTS_AT_ONCE]]
            body = {
                "model": model,
                "prompt": asked,
                "max_tokens": 1,
                "temperature": 0,
                "prompt_logprobs": 0,
            }
            response = await self._call("/v1/completions", body, timeout_s=self.timeouts.request_s)
            with sensible(self.url):
                choices = sorted(decoded(response)["choices"], key=lambda choice: choice["index"])
            if len(choices) != len(asked):
                raise ServerRefused(
                    f"{self.url} answered {len(choices)} of {len(asked)} texts", status=502
                )
            for text, choice in zip(asked, choices, strict=True):
                scored.append(_taken(self.url, text, choice.get("prompt_logprobs")))
        return tuple(scored)

    async def chat(self, model: str, prompt: str, *, max_tokens: int) -> Completion:
        """Greedy answer to one user message."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            **self._decoding,
        }
        response = await self._call("/v1/chat/completions", body, timeout_s=self.timeouts.request_s)
        with sensible(self.url):
            value = decoded(response)
            choice = value["choices"][0]
            return Completion(
                choice["message"]["content"] or "",
                value["model"],
                finish_reason=choice["finish_reason"],
                headers=dict(response.headers),
            )

    async def gateway(self) -> GatewayState:
        """What the alias middleware knows; `ServerRefused` 404 where it is not installed."""
        self._wire.forget()
        timeout_s = self.timeouts.health_s
        return _gateway(self.url, await self._json("GET", "/palorad/state", timeout_s=timeout_s))

    async def declare_verified(self, name: str) -> GatewayState:
        """Tell the middleware that `name` may be routed in its process from now on."""
        response = await self._call(
            "/palorad/verified", {"model": name}, timeout_s=self.timeouts.health_s
        )
        return _gateway(self.url, decoded(response))

    async def fence(self) -> GatewayState:
        """Have the middleware answer its alias from nothing until something is verified again."""
        timeout_s = self.timeouts.health_s
        return _gateway(
            self.url, await self._json("DELETE", "/palorad/verified", timeout_s=timeout_s)
        )

    async def metrics(self) -> AdapterLoad:
        """What the server's own `/metrics` say of its adapters."""
        timeout_s = self.timeouts.health_s
        text = await self._wire.read("/metrics", most=MOST_METRICS, timeout_s=timeout_s)
        with sensible(self.url):
            return adapter_load(text.decode())

    async def post(self, path: str, *, timeout_s: float) -> None:
        """A bare admin request, for instance `/sleep?level=1&mode=wait`."""
        require_ok(self.url, await self._wire.send("POST", path, timeout_s=timeout_s))

    async def get(self, path: str, *, timeout_s: float) -> dict[str, Any]:
        """What an admin route says, for instance `/is_sleeping`."""
        return await self._json("GET", path, timeout_s=timeout_s)

    async def _call(self, path: str, body: object, *, timeout_s: float) -> httpx.Response:
        response = await self._wire.send("POST", path, body, timeout_s=timeout_s)
        return require_ok(self.url, response)

    async def _json(self, method: str, path: str, *, timeout_s: float) -> dict[str, Any]:
        response = await self._wire.send(method, path, timeout_s=timeout_s)
        return decoded(require_ok(self.url, response))


def _completions(response: httpx.Response) -> list[Completion]:
    value = decoded(response)
    headers = dict(response.headers)
    return [
        Completion(
            choice["text"],
            value["model"],
            tuple(choice.get("token_ids") or ()),
            tuple((choice.get("logprobs") or {}).get("token_logprobs") or ()),
            choice["finish_reason"],
            headers,
        )
        for choice in sorted(value["choices"], key=lambda choice: choice["index"])
    ]


def _taken(url: str, text: Sequence[int], given: Any) -> tuple[PromptLogprob, ...]:  # noqa: ANN401 - JSON
    """The entries of the text's own tokens; the server may list others beside them."""
    try:
        own = [entry[str(token)] for token, entry in zip(text[1:], given[1:], strict=True)]
        taken = tuple(PromptLogprob(float(one["logprob"]), int(one["rank"])) for one in own)
    except (TypeError, KeyError, ValueError) as error:
        raise ServerRefused(
            f"{url} gave no log-probabilities and ranks of a prompt's tokens ({error!r})",
            status=501,
        ) from error
    return taken


def _gateway(url: str, value: Mapping[str, Any]) -> GatewayState:
    with sensible(url):
        pointer = value["pointer"] or {}
        return GatewayState(
            value["instance_id"],
            pointer.get("model"),
            pointer.get("revision"),
            frozenset(value["verified"]),
            dict(value["in_flight"]),
            dict(value["answered"]),
            bool(value["asleep"]),
            {model: Traffic.model_validate(one) for model, one in value["traffic"].items()},
        )
