"""Signing in, plans and revisions, and what a person decides about them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, ConfigDict

from daemon.views.verdicts import (
    PlansView,
    PlanView,
    RevisionPage,
    plan_view,
    plans_view,
    revision_page,
)
from daemon.web.desk import Desk
from daemon.web.numbers import Before, Number, number_in
from daemon.web.operators import COOKIE, SESSION_S
from daemon.web.render import Renderer

# What a person may do from the page, and whether it takes a plan, a revision or nothing.
ACTIONS: Final = {
    "promote": "plan",
    "reject": "plan",
    "retry": "subject",
    "rollback": "to",
    "forward": "to",
    "pause": "",
    "resume": "",
    "consolidate": "",
}
Action = Literal[
    "promote", "reject", "retry", "rollback", "forward", "pause", "resume", "consolidate"
]


class Decision(BaseModel):
    """What is decided about (a plan, a revision or a batch, where the action takes one), and why;
    the reason is recorded. A rollback or its undoing is refused where `target`, if given, is not
    the target any more."""

    model_config = ConfigDict(extra="forbid")

    about: str = ""
    because: str = ""
    target: int | None = None


class Done(BaseModel):
    """What a command has done, in one line."""

    line: str


def routes(desk: Desk, renderer: Renderer) -> APIRouter:
    """The routes over a desk."""
    router = APIRouter()
    _sessions(router, desk, renderer)
    _actions(router, desk, renderer)
    _plans(router, desk, renderer)
    return router


def _sessions(router: APIRouter, desk: Desk, renderer: Renderer) -> None:
    @router.get("/login", include_in_schema=False)
    def login_page(request: Request, to: str = "/") -> HTMLResponse:
        return renderer.page(request, "login.html", title="Sign in", to=to)

    @router.post("/login", include_in_schema=False)
    def login(token: Annotated[str, Form()], to: Annotated[str, Form()] = "/") -> Response:
        cookie = desk.operators.open(token.strip())
        response = renderer.back_to(to, "Signed in.")
        response.set_cookie(COOKIE, cookie, max_age=SESSION_S, httponly=True, samesite="strict")
        return response

    @router.post("/logout", include_in_schema=False)
    def logout() -> Response:
        response = renderer.back_to("/", "Signed out.")
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response


def _actions(router: APIRouter, desk: Desk, renderer: Renderer) -> None:
    def done(action: Action, about: str, because: str, target: int | None) -> str:
        name = ACTIONS[action]
        args: dict[str, Any] = {} if action == "resume" else {"because": because}
        if name and about:
            args[name] = number_in(about) if name in ("plan", "to") else about
        if name == "to":
            args["seen"] = target
        return str(desk.do(action, **args)["line"])

    @router.post("/api/do/{action}")
    def do_json(request: Request, action: Action, decision: Decision) -> Done:
        """One of the daemon's commands; needs the operator token."""
        desk.operators.require(request)
        return Done(line=done(action, decision.about, decision.because, decision.target))

    @router.post("/do/{action}", include_in_schema=False)
    def do_form(
        request: Request,
        action: Action,
        csrf: Annotated[str, Form()] = "",
        about: Annotated[str, Form()] = "",
        because: Annotated[str, Form()] = "",
        target: Annotated[str, Form()] = "",
        to: Annotated[str, Form()] = "/",
    ) -> Response:
        desk.operators.require(request, csrf)
        seen = number_in(target) if target else None
        return renderer.back_to(to, done(action, about, because, seen))


def _plans(router: APIRouter, desk: Desk, renderer: Renderer) -> None:
    def plans(before: int | None) -> PlansView:
        with desk.reading() as ledger:
            return plans_view(ledger, before)

    def plan(number: int) -> PlanView:
        with desk.reading() as ledger:
            return plan_view(ledger, number)

    def revision(number: int) -> RevisionPage:
        with desk.reading() as ledger:
            return revision_page(ledger, desk.settings.layout, number)

    @router.get("/api/plans")
    def plans_json(before: Before = None) -> PlansView:
        """Every attempt at learning, the newest first."""
        return plans(before)

    @router.get("/plans", include_in_schema=False)
    def plans_page(request: Request, before: Before = None) -> HTMLResponse:
        return renderer.page(request, "plans.html", title="Plans", view=plans(before))

    @router.get("/api/plans/{number}")
    def plan_json(number: Number) -> PlanView:
        """A plan, the gate's verdict on it, and the answers behind it."""
        return plan(number)

    @router.get("/plans/{number}", include_in_schema=False)
    def plan_page(request: Request, number: Number) -> HTMLResponse:
        return renderer.page(
            request, "plan.html", title=f"Plan {number}", plan=plan(number), revision=None
        )

    @router.get("/api/revisions/{number}")
    def revision_json(number: Number) -> RevisionPage:
        """A revision: what it is made of, and its plan's verdict."""
        return revision(number)

    @router.get("/revisions/{number}", include_in_schema=False)
    def revision_html(request: Request, number: Number) -> HTMLResponse:
        found = revision(number)
        return renderer.page(
            request, "plan.html", title=f"Revision {number}", plan=found.plan, revision=found
        )
