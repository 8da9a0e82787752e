"""palorad's own small server: the part of vLLM's HTTP API that palorad uses."""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from adapters.generate import Generator
from adapters.models import check_model_dir
from daemon.embedded import protocol as shapes
from daemon.embedded.api import Api, Refusal
from daemon.embedded.connections import BACKLOG, ConnectionLimits, limited, most_connections
from daemon.embedded.engine import Engine
from daemon.serving.alias import AdminGateway, AliasMiddleware
from policies.errors import PaloradError, ServerUnusable

KEEP_ALIVE_S = 60
MAX_BODY = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Embedded:
    """What is served, and how; `gateway` None leaves the alias middleware out (tests only)."""

    model: Path
    name: str = "base"
    host: str = "127.0.0.1"
    port: int = 8421
    max_rank: int = 128
    gateway: AdminGateway | None = None


def build(settings: Embedded, generator: Generator | None = None) -> FastAPI:
    """The application; raises `UnusableModel` where the model cannot be loaded."""
    check_model_dir(settings.model)
    engine = Engine(generator or Generator(settings.model, max_rank=settings.max_rank))
    api = Api(settings.model, settings.name, engine)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.stop)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.engine = engine
    _routes(app, api)

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        return JSONResponse(refusal.body, refusal.status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, problem: RequestValidationError) -> JSONResponse:
        first = problem.errors()[0]
        where = ".".join(str(p) for p in first["loc"] if p != "body")
        return JSONResponse(shapes.error(400, f"{where}: {first['msg']}", param=where or None), 400)

    @app.exception_handler(PaloradError)
    async def failed(_: Request, problem: PaloradError) -> JSONResponse:
        return JSONResponse(shapes.error(500, str(problem)), 500)

    if settings.gateway is not None:
        app.add_middleware(AliasMiddleware, gateway=settings.gateway)
    return app


def _routes(app: FastAPI, api: Api) -> None:
    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200)

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(api.metrics())

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        return JSONResponse(api.models())

    @app.post("/v1/completions")
    async def completions(asked: shapes.CompletionAsked, request: Request) -> Response:
        return await api.complete(asked, request)

    @app.post("/v1/chat/completions")
    async def chat(asked: shapes.ChatAsked, request: Request) -> Response:
        return await api.chat(asked, request)

    @app.post("/v1/load_lora_adapter")
    async def load(asked: shapes.LoadAsked) -> PlainTextResponse:
        return PlainTextResponse(await api.load(asked))

    @app.post("/v1/unload_lora_adapter")
    async def unload(asked: shapes.UnloadAsked) -> PlainTextResponse:
        return PlainTextResponse(await api.unload(asked))


def listening(host: str, port: int) -> socket.socket:
    """A bound socket; raises `ServerUnusable` when the port is taken or the host is unknown."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ServerUnusable(
            f"cannot listen on {host}:{port}: {error.strerror}; "
            "stop what uses that port or set [server] urls to another one"
        ) from error
    return sock


def serve(settings: Embedded) -> None:
    """Serve until SIGTERM or SIGINT."""
    check_model_dir(settings.model)
    sock = listening(settings.host, settings.port)
    config = uvicorn.Config(
        build(settings),
        http=limited(ConnectionLimits(most_connections())),
        backlog=BACKLOG,
        # Requests that are none are somebody else's trouble: they would fill the log.
        log_level="error",
        access_log=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    uvicorn.Server(config).run(sockets=[sock])


def _arguments(arguments: list[str] | None) -> Embedded:
    parser = argparse.ArgumentParser(prog="python -m daemon.embedded.app", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the base's directory")
    parser.add_argument("--name", default="base", help="the base's name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8421)
    parser.add_argument("--max-lora-rank", type=int, default=128)
    parser.add_argument("--alias-file", type=Path, required=True, help="alias.json")
    parser.add_argument("--admin-key-file", type=Path, required=True)
    parser.add_argument("--served-dir", type=Path, required=True, help="where revisions lie")
    parser.add_argument("--user-key-file", type=Path)
    parsed = parser.parse_args(arguments)
    gateway = AdminGateway(
        parsed.alias_file,
        parsed.admin_key_file,
        parsed.served_dir,
        parsed.user_key_file,
        max_body=MAX_BODY,
    )
    return Embedded(
        parsed.model, parsed.name, parsed.host, parsed.port, parsed.max_lora_rank, gateway
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the server; 0 after a clean end, 1 with one line on stderr otherwise."""
    try:
        serve(_arguments(arguments))
    except PaloradError as error:
        print(f"palorad embedded server: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
