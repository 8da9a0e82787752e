"""A server process of numbers: it answers from the bytes that it loaded, behind the middleware."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from adapters import store
from daemon.serving.alias import AdminGateway, AliasMiddleware

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
BASE = "base"
BASE_TOKEN = 7


@dataclass(frozen=True)
class Answer:
    """What a user got: a status, the revision that the header names, and the tokens."""

    status: int
    revision: int | None
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """What was loaded under a name: where from, the hash of those bytes, what they answer."""

    root: str
    sha256: str
    answers: dict[str, dict[str, Any]]


class Engine:
    """One replica: killed, started again, cut off, or made to load the wrong bytes once.

    Nobody reaches one that is cut off, but what it has loaded stays loaded.
    """

    def __init__(self, gateway: AdminGateway, url: str) -> None:
        self.gateway = gateway
        self.url = url
        self.garbles = self.garbled = self.cut_off = False
        self.heard: Callable[[str], Awaitable[None]] | None = None
        self.start()

    def start(self) -> None:
        """A new process: nothing loaded, nothing verified."""
        self.up, self.garbled = True, False
        self.weights: dict[str, Weights] = {}
        self.middleware = AliasMiddleware(self._app, self.gateway)
        self._inner = httpx.ASGITransport(app=self.middleware)

    def kill(self) -> None:
        self.up = False

    @property
    def transport(self) -> httpx.AsyncBaseTransport:
        """For `HttpServer(transport=…)`."""
        return _Wire(self)

    async def answer(self, request: httpx.Request) -> httpx.Response:
        """One request over the wire."""
        if self.heard is not None:
            await self.heard(request.url.path)
        if not self.up or self.cut_off:
            raise httpx.ConnectError("connection refused", request=request)
        response = await self._inner.handle_async_request(request)
        if not self.up or self.cut_off:
            raise httpx.ReadError("connection reset", request=request)
        return response

    async def ask(self, alias: str, prompt: str) -> Answer | None:
        """What a user of the alias is answered; None where nobody answers."""
        if not self.up or self.cut_off:
            return None
        body = {"model": alias, "prompt": [prompt], "max_tokens": 4}
        request = httpx.Request("POST", f"{self.url}/v1/completions", json=body)
        response = await self._inner.handle_async_request(request)
        content = json.loads(await response.aread())
        said = response.headers.get("x-palorad-revision")
        tokens = content["choices"][0]["token_ids"] if response.status_code == 200 else ()
        return Answer(response.status_code, None if said is None else int(said), tuple(tokens))

    # --- the server behind the middleware ------------------------------------------------------

    async def _app(self, scope: MutableMapping[str, Any], receive: Any, send: Send) -> None:
        path = scope["path"]
        body = await _body(receive) if scope["method"] == "POST" else b""
        status, content = self._route(path, json.loads(body) if body.strip() else {})
        raw = json.dumps(content).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(raw))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": raw})

    def _route(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/health":
            return 200, ""
        if path == "/v1/models":
            cards = [{"id": BASE, "root": "/model", "parent": None}]
            cards += [{"id": n, "root": w.root, "parent": BASE} for n, w in self.weights.items()]
            return 200, {"object": "list", "data": cards}
        if path == "/v1/load_lora_adapter":
            return self._load(body["lora_name"], Path(body["lora_path"]))
        if path == "/v1/unload_lora_adapter":
            found = self.weights.pop(body["lora_name"], None)
            return (404, "cannot be found") if found is None else (200, "Success")
        if path == "/v1/completions":
            return self._complete(body["model"], body["prompt"], body["max_tokens"])
        return 404, {"detail": "Not Found"}

    def _load(self, name: str, path: Path) -> tuple[int, str]:
        if name in self.weights:
            return 400, "has already been loaded"
        try:
            sha = store.content_hash(path)
            identity = json.loads((path / "identity.json").read_text())
        except (OSError, ValueError) as error:
            return 500, f"cannot load: {error}"
        answers = {item["prompt"]: item for item in identity["items"]}
        if self.garbles:
            self.garbles, self.garbled, sha = False, True, "garbled"
            answers = {
                prompt: {**item, "token_ids": [t + 1 for t in item["token_ids"]]}
                for prompt, item in answers.items()
            }
        self.weights[name] = Weights(str(path), sha, answers)
        return 200, "Success"

    def _complete(self, model: str, prompts: list[str], max_tokens: int) -> tuple[int, Any]:
        if model != BASE and model not in self.weights:
            return 404, {"error": {"message": f"`{model}` does not exist."}}
        stored = {} if model == BASE else self.weights[model].answers
        choices = []
        for index, prompt in enumerate(prompts):
            item = stored.get(prompt, {})
            tokens = item.get("token_ids", [BASE_TOKEN] * max_tokens)
            logprobs = {"token_logprobs": item.get("logprobs", [-1.0] * max_tokens)}
            choices.append(
                {
                    "index": index,
                    "text": "x",
                    "finish_reason": "length",
                    "token_ids": tokens,
                    "logprobs": logprobs,
                }
            )
        return 200, {"model": model, "choices": choices}


class _Wire(httpx.AsyncBaseTransport):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._engine.answer(request)


async def _body(receive: Any) -> bytes:
    found = b""
    while True:
        message = await receive()
        found += bytes(message.get("body", b""))
        if not message.get("more_body"):
            return found
