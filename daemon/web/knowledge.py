"""Facts and what the models know of them: search, stories, answers now, retention, the probe."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict

from daemon.views.answers import answers
from daemon.views.capacity import CapacityView, capacity_view
from daemon.views.probes import ProbeView, probe_view
from daemon.views.retention import RetentionView, retention_view
from daemon.views.status import AnswerView
from daemon.views.stories import FactStory, FactsView, facts_view, story
from daemon.web.desk import Desk
from daemon.web.numbers import Before
from daemon.web.render import Renderer


class QuestionBody(BaseModel):
    """What the models are asked."""

    model_config = ConfigDict(extra="forbid")

    question: str


class ModelAnswers(BaseModel):
    """What each model answers now; none where the server does not answer."""

    question: str
    answers: tuple[AnswerView, ...]


def routes(desk: Desk, renderer: Renderer) -> APIRouter:
    """The routes over a desk."""
    router = APIRouter()
    _facts(router, desk, renderer)
    _asking(router, desk, renderer)
    _learning(router, desk, renderer)
    return router


def _facts(router: APIRouter, desk: Desk, renderer: Renderer) -> None:
    def found(question: str, before: int | None) -> FactsView:
        with desk.reading() as ledger:
            return facts_view(ledger, question, before)

    def told(fact: str) -> FactStory:
        with desk.reading() as ledger:
            return story(ledger, fact, desk.remembered)

    @router.get("/api/facts")
    def facts_json(q: str = "", before: Before = None) -> FactsView:
        """Facts about a question, the best first; without one the latest."""
        return found(q, before)

    @router.get("/facts", include_in_schema=False)
    def facts_page(request: Request, q: str = "", before: Before = None) -> HTMLResponse:
        template = "_facts.html" if request.headers.get("hx-request") else "facts.html"
        return renderer.page(request, template, title="Facts", view=found(q, before))

    @router.get("/api/facts/{fact:path}")
    def story_json(fact: str) -> FactStory:
        """One fact's whole story."""
        return told(fact)

    @router.get("/facts/{fact:path}", include_in_schema=False)
    def story_page(request: Request, fact: str) -> HTMLResponse:
        return renderer.page(request, "fact.html", title="Fact", view=told(fact))


def _asking(router: APIRouter, desk: Desk, renderer: Renderer) -> None:
    def asked(question: str) -> ModelAnswers:
        with desk.reading() as ledger:
            target = ledger.revisions.target()
            before = None if target.parent is None else ledger.revisions.get(target.parent)
        said = asyncio.run(answers(desk.settings, question, before))
        return ModelAnswers(question=question, answers=said)

    @router.post("/api/ask")
    def ask_json(request: Request, question: QuestionBody) -> ModelAnswers:
        """What base, the revision before and the live one answer now; needs the operator token."""
        desk.operators.require(request)
        return asked(question.question)

    @router.post("/ask", include_in_schema=False)
    def ask_form(
        request: Request, question: Annotated[str, Form()], csrf: Annotated[str, Form()] = ""
    ) -> HTMLResponse:
        desk.operators.require(request, csrf)
        template = "_answers.html" if request.headers.get("hx-request") else "answers.html"
        return renderer.page(request, template, title="Answers now", view=asked(question))


def _learning(router: APIRouter, desk: Desk, renderer: Renderer) -> None:
    def retention() -> RetentionView:
        with desk.reading() as ledger:
            return retention_view(ledger, desk.remembered)

    def capacity() -> CapacityView:
        with desk.reading() as ledger:
            return capacity_view(ledger, desk.settings, desk.sizes.known or ())

    def probe() -> ProbeView:
        with desk.reading() as ledger:
            return probe_view(ledger, desk.settings)

    @router.get("/api/retention")
    def retention_json() -> RetentionView:
        """What each revision still knew of each batch, with reasoning and locality beside it."""
        return retention()

    @router.get("/retention", include_in_schema=False)
    def retention_page(request: Request) -> HTMLResponse:
        return renderer.page(request, "retention.html", title="Retention", view=retention())

    @router.get("/api/capacity")
    def capacity_json() -> CapacityView:
        """Rank, facts, the next run and the disk."""
        return capacity()

    @router.get("/capacity", include_in_schema=False)
    def capacity_page(request: Request) -> HTMLResponse:
        return renderer.page(request, "capacity.html", title="Capacity", view=capacity())

    @router.get("/api/probe")
    def probe_json() -> ProbeView:
        """What is protected, and how far the probe's seeds agree."""
        return probe()

    @router.get("/probe", include_in_schema=False)
    def probe_page(request: Request) -> HTMLResponse:
        return renderer.page(request, "probe.html", title="Probe", view=probe())
