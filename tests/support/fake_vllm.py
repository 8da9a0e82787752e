"""A stand-in for one replica: vLLM's routes over stored identities, real middleware in front."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse

from adapters import store
from daemon.serving.alias import AdminGateway, AliasMiddleware

ADMIN = "admin-key-for-tests"
TOKENS = 4
# What vLLM 0.32.0 answered while two adapters were at work.
METRICS = Path(__file__).parent / "vllm_metrics.txt"


def publish(served: Path, number: int, seed: int | None = None) -> str:
    """A published revision whose identity is made of numbers; return its name."""
    seed = number if seed is None else seed
    staging = store.staging(served, f"{number}-{seed}")
    items = [
        {
            "prompt": f"prompt {i}",
            "token_ids": [seed * 100 + i + k for k in range(TOKENS)],
            "logprobs": [-0.1 * (k + 1) - seed * 0.01 for k in range(TOKENS)],
            "base_token_ids": [7] * TOKENS,
            "base_logprobs": [-1.0] * TOKENS,
        }
        for i in range(3)
    ]
    (staging / "adapter_config.json").write_text(json.dumps({"seed": seed}))
    (staging / "identity.json").write_text(
        json.dumps({"version": 1, "max_tokens": TOKENS, "differs": True, "items": items})
    )
    return store.publish(
        staging, served, {}, lambda content: f"palora-{number:06}-{content[:8]}"
    ).name


class Replica:
    """One server process that can be killed, restarted and made to lie."""

    def __init__(self, gateway: AdminGateway, url: str = "http://replica") -> None:
        self.gateway = gateway
        self.url = url
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.broken: dict[str, str] = {}
        self.heard: Callable[[str], None] = lambda _path: None
        self.can_sleep = self.sleep_mode = True
        self.slow_s = 1.0
        self.base_token = 7
        self.up = True
        self.start()

    def start(self) -> None:
        """A new process: nothing loaded, nothing verified."""
        self.adapters: dict[str, str] = {}
        self.asleep = False
        self.up = True
        app = _app(self)
        self.middleware = AliasMiddleware(app, self.gateway)
        self._inner = httpx.ASGITransport(app=self.middleware)

    @property
    def transport(self) -> httpx.AsyncBaseTransport:
        """For `HttpServer(transport=…)`."""
        return _Wire(self)

    async def answer(self, request: httpx.Request) -> httpx.Response:
        """One request over the wire."""
        if not self.up:
            raise httpx.ConnectError("connection refused", request=request)
        self.heard(request.url.path)
        return await self._inner.handle_async_request(request)


class _Wire(httpx.AsyncBaseTransport):
    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._replica.answer(request)


def _app(replica: Replica) -> FastAPI:
    app = FastAPI()

    @app.get("/health")
    async def health() -> PlainTextResponse:
        return PlainTextResponse("")

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(METRICS.read_text())

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        cards = [{"id": "base", "root": "/model", "parent": None}]
        cards += [{"id": n, "root": p, "parent": "base"} for n, p in replica.adapters.items()]
        return {"object": "list", "data": cards}

    @app.post("/v1/load_lora_adapter")
    async def load(request: Request) -> PlainTextResponse:
        body = await request.json()
        name, path = body["lora_name"], body["lora_path"]
        replica.loads.append(name)
        if replica.broken.get(name) == "load":
            return PlainTextResponse("cannot load", 500)
        if name in replica.adapters:
            return PlainTextResponse("has already been loaded", 400)
        replica.adapters[name] = path
        return PlainTextResponse("Success")

    @app.post("/v1/unload_lora_adapter")
    async def unload(request: Request) -> PlainTextResponse:
        name = (await request.json())["lora_name"]
        replica.unloads.append(name)
        if replica.adapters.pop(name, None) is None:
            return PlainTextResponse("cannot be found", 404)
        return PlainTextResponse("Success")

    @app.post("/v1/completions")
    async def completions(request: Request) -> JSONResponse:
        body = await request.json()
        model, prompts = body["model"], body["prompt"]
        if replica.asleep:
            return JSONResponse({"error": {"message": "asked while asleep"}}, 500)
        if "slow" in prompts:
            await asyncio.sleep(replica.slow_s)
        fault = replica.broken.get(model)
        if fault == "nan":
            message = "Out of range float values are not JSON compliant: nan"
            return JSONResponse({"error": {"message": message}}, 400)
        if model != "base" and model not in replica.adapters:
            return JSONResponse({"error": {"message": f"`{model}` does not exist."}}, 404)
        stored, said = {}, replica.base_token
        if model != "base" and fault != "base":
            identity = json.loads((Path(replica.adapters[model]) / "identity.json").read_text())
            stored = {item["prompt"]: item for item in identity["items"]}
        choices = [
            {
                "index": i,
                "text": "x",
                "finish_reason": "length",
                "token_ids": stored.get(p, {}).get("token_ids", [said] * body["max_tokens"]),
                "logprobs": {
                    "token_logprobs": stored.get(p, {}).get("logprobs", [-1.0] * body["max_tokens"])
                },
            }
            for i, p in enumerate(prompts)
        ]
        return JSONResponse({"model": model, "choices": choices})

    _add_sleep(app, replica)
    return app


def _add_sleep(app: FastAPI, replica: Replica) -> None:
    """vLLM's development routes, which it has with VLLM_SERVER_DEV_MODE=1 only."""

    @app.post("/sleep")
    async def sleep(level: int, mode: str) -> JSONResponse:
        if not replica.can_sleep:
            return JSONResponse({"detail": "Not Found"}, 404)
        replica.asleep = True
        return JSONResponse({"status": "sleeping", "level": level, "mode": mode})

    @app.post("/wake_up")
    async def wake_up() -> JSONResponse:
        if not replica.can_sleep:
            return JSONResponse({"detail": "Not Found"}, 404)
        if replica.broken.get("wake"):
            return JSONResponse({"error": {"message": "out of memory"}}, 500)
        replica.asleep = False
        return JSONResponse({"status": "awake"})

    @app.get("/is_sleeping")
    async def is_sleeping() -> JSONResponse:
        if not replica.can_sleep:
            return JSONResponse({"detail": "Not Found"}, 404)
        return JSONResponse({"is_sleeping": replica.asleep})

    @app.get("/server_info")
    async def server_info() -> JSONResponse:
        return JSONResponse(
            {"vllm_config": {"model_config": {"enable_sleep_mode": replica.sleep_mode}}}
        )
