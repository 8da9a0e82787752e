"""Facts in: a file or pasted lines, checked line by line before they are submitted; quarantine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

from fastapi import APIRouter, Body, File, Form, Request, UploadFile
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, ConfigDict

from daemon.ledger.records import BadLine
from daemon.views.explain import Explanation
from daemon.views.lines import CheckView, QuarantineView, bad_line, check_view, quarantine_view
from daemon.views.status import explain
from daemon.web.deciding import Done
from daemon.web.desk import Desk
from daemon.web.numbers import Before, Number
from daemon.web.render import Renderer
from policies.errors import RequestRefused

PASTED: Final = "pasted.jsonl"
_NAME: Final = re.compile(r"[^\w.+-]+")
LONGEST_NAME: Final = 120


class Corrected(BaseModel):
    """A line as a person has corrected it."""

    model_config = ConfigDict(extra="forbid")

    text: str


class Submission(BaseModel):
    """A batch on its way in; `known` where the same bytes came before."""

    batch: str
    known: bool
    line: str


def routes(desk: Desk, renderer: Renderer) -> APIRouter:
    """The routes over a desk."""
    router = APIRouter()
    _dropping(router, desk, renderer)
    _dropping_json(router, desk)
    _quarantine(router, desk, renderer)
    _batches(router, desk, renderer)
    return router


@contextmanager
def as_file(name: str, body: bytes) -> Iterator[Path]:
    """The bytes as a file of a harmless name, for as long as it is looked at."""
    if not body.strip():
        raise RequestRefused("there is nothing in it: choose a file, or paste lines")
    plain = _NAME.sub("-", Path(name).name).encode()[-LONGEST_NAME:].decode(errors="ignore")
    with TemporaryDirectory(prefix="palorad-") as folder:
        path = Path(folder) / (plain.lstrip(".-") or PASTED)
        path.write_bytes(body)
        yield path


def _checked(desk: Desk, name: str, body: bytes) -> CheckView:
    with as_file(name, body) as path, desk.reading() as ledger:
        return check_view(ledger, path, desk.rules, desk.wall())


def _submitted(desk: Desk, name: str, body: bytes) -> Submission:
    with as_file(name, body) as path:
        return Submission(
            **{k: v for k, v in desk.do("submit", path=str(path)).items() if k != "state"}
        )


def _dropping(router: APIRouter, desk: Desk, renderer: Renderer) -> None:
    @router.get("/drop", include_in_schema=False)
    def drop_page(request: Request) -> HTMLResponse:
        return renderer.page(request, "drop.html", title="Add facts", view=None, text="", name="")

    @router.post("/drop", include_in_schema=False)
    def drop_form(
        request: Request,
        what: Annotated[str, Form()] = "check",
        text: Annotated[str, Form()] = "",
        name: Annotated[str, Form()] = "",
        csrf: Annotated[str, Form()] = "",
        file: Annotated[UploadFile | None, File()] = None,
    ) -> Response:
        body = b"" if file is None else file.file.read()
        if body and file is not None:
            name, text = file.filename or PASTED, body.decode(errors="replace")
        body = body or text.replace("\r\n", "\n").encode(errors="surrogatepass")
        if what == "submit":
            desk.operators.require(request, csrf)
            done = _submitted(desk, name or PASTED, body)
            return renderer.back_to(f"/batches/{done.batch}", done.line)
        template = "_checked.html" if request.headers.get("hx-request") else "drop.html"
        view = _checked(desk, name or PASTED, body)
        return renderer.page(
            request, template, title="Add facts", view=view, text=text, name=view.name
        )


def _dropping_json(router: APIRouter, desk: Desk) -> None:
    @router.post("/api/check")
    def check_json(
        body: Annotated[bytes, Body(media_type="application/octet-stream")], name: str = PASTED
    ) -> CheckView:
        """What admission would say of each line of a file; nothing is stored."""
        return _checked(desk, name, body)

    @router.post("/api/submit")
    def submit_json(
        request: Request,
        body: Annotated[bytes, Body(media_type="application/octet-stream")],
        name: str = PASTED,
    ) -> Submission:
        """Submit a file of facts; needs the operator token."""
        desk.operators.require(request)
        return _submitted(desk, name, body)


def _quarantine(router: APIRouter, desk: Desk, renderer: Renderer) -> None:
    def listed(batch: str | None, before: int | None) -> QuarantineView:
        with desk.reading() as ledger:
            return quarantine_view(ledger, batch, before)

    def one(batch: str, line: int) -> BadLine:
        with desk.reading() as ledger:
            return bad_line(ledger, desk.settings.layout, batch, line)

    @router.get("/api/quarantine")
    def quarantine_json(batch: str | None = None, before: Before = None) -> QuarantineView:
        """Lines that were not admitted, the latest first."""
        return listed(batch, before)

    @router.get("/quarantine", include_in_schema=False)
    def quarantine_page(
        request: Request, batch: str | None = None, before: Before = None
    ) -> HTMLResponse:
        view = listed(batch, before)
        return renderer.page(request, "quarantine.html", title="Quarantine", view=view)

    @router.get("/api/quarantine/{batch}/{line}")
    def line_json(batch: str, line: Number) -> BadLine:
        """One line with its whole text."""
        return one(batch, line)

    @router.get("/quarantine/{batch}/{line}", include_in_schema=False)
    def line_page(request: Request, batch: str, line: Number) -> HTMLResponse:
        bad = one(batch, line)
        return renderer.page(request, "line.html", title=f"Line {line}", bad=bad)

    @router.post("/api/quarantine/{batch}/{line}")
    def correct_json(request: Request, batch: str, line: Number, corrected: Corrected) -> Done:
        """Submit the line as corrected; then it leaves quarantine. Needs the operator token."""
        desk.operators.require(request)
        done = desk.do("correct", batch=batch, line=line, text=corrected.text)
        return Done(line=done["line"])

    @router.post("/quarantine/{batch}/{line}", include_in_schema=False)
    def correct_form(
        request: Request,
        batch: str,
        line: Number,
        text: Annotated[str, Form()],
        csrf: Annotated[str, Form()] = "",
    ) -> Response:
        desk.operators.require(request, csrf)
        done = desk.do("correct", batch=batch, line=line, text=text)
        return renderer.back_to("/quarantine", str(done["line"]))


def _batches(router: APIRouter, desk: Desk, renderer: Renderer) -> None:
    def found(batch: str) -> Explanation | None:
        with desk.reading() as ledger:
            if not ledger.batches.is_complete(batch) and ledger.listings.arriving(batch):
                return None
            return explain(ledger, batch)

    @router.get("/api/batches/{batch}")
    def batch_json(batch: str) -> Explanation | None:
        """Why a batch stands where it stands; null while it is still being read."""
        return found(batch)

    @router.get("/batches/{batch}", include_in_schema=False)
    def batch_page(request: Request, batch: str) -> HTMLResponse:
        view = found(batch)
        return renderer.page(request, "batch.html", title="Batch", batch=batch, view=view)
