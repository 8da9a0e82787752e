"""The application: every page and its JSON, within the guard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from daemon.web import deciding, intake, knowledge, looking, metrics
from daemon.web.desk import Desk
from daemon.web.gathering import Gathering
from daemon.web.guard import Guard
from daemon.web.operators import NotAllowed
from daemon.web.render import HERE, Renderer
from policies.errors import (
    Ambiguous,
    DaemonUnreachable,
    LedgerBusy,
    LedgerUnusable,
    NotFound,
    PaloradError,
)

# Few, since Python lets one of them work at a time beside the daemon's loop.
THREADS: Final = 4
STATUS: Final[tuple[tuple[type[PaloradError], int], ...]] = (
    (NotAllowed, 403),
    (NotFound, 404),
    (Ambiguous, 404),
    (DaemonUnreachable, 503),
    (LedgerBusy, 503),
    (LedgerUnusable, 503),
)


def build(desk: Desk) -> ASGIApp:
    """The application over a desk."""

    figures = metrics.Figures(desk)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        gathered: tuple[Gathering[Any], ...] = (figures.gathering, figures.adapters, desk.sizes)
        for gathering in gathered:
            gathering.begin()
        yield
        for gathering in gathered:
            gathering.end()

    app = FastAPI(
        title="palorad",
        description="What the operator's page shows, as JSON. Changes need the operator token.",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    renderer = Renderer(desk)
    for room in (looking, deciding, knowledge, intake):
        app.include_router(room.routes(desk, renderer))
    app.include_router(metrics.routes(figures))
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    _errors(app, renderer)
    return Guard(app)


def _errors(app: FastAPI, renderer: Renderer) -> None:
    def told(request: Request, status: int, line: str) -> Response:
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": line}, status)
        return renderer.page(request, "error.html", status, title="Not done", line=line)

    @app.exception_handler(PaloradError)
    def refused(request: Request, error: PaloradError) -> Response:
        status = next((code for kind, code in STATUS if isinstance(error, kind)), 409)
        return told(request, status, str(error))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return told(request, 422, f"{where}: {first['msg']}")

    @app.exception_handler(HTTPException)
    def missing(request: Request, error: HTTPException) -> Response:
        line = "there is no such page" if error.status_code == 404 else str(error.detail)
        return told(request, error.status_code, line)
