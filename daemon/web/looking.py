"""Pages that only show: now, the timeline, feeds, replicas."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from daemon.views.now import NowView, now_view
from daemon.views.status import FeedView, ReplicaView
from daemon.views.timeline import LiveAt, TimelineView, live_at, timeline
from daemon.web.desk import Desk
from daemon.web.numbers import Before
from daemon.web.render import Renderer
from policies.errors import RequestRefused


def routes(desk: Desk, renderer: Renderer) -> APIRouter:
    """The routes over a desk."""
    router = APIRouter()
    _now(router, desk, renderer)
    _timeline(router, desk, renderer)
    _fleet(router, desk, renderer)
    return router


def _now(router: APIRouter, desk: Desk, renderer: Renderer) -> None:
    def view() -> NowView:
        live = desk.live.now()
        with desk.reading() as ledger:
            return now_view(ledger, live, desk.wall())

    @router.get("/api/now")
    def now_json() -> NowView:
        """What answers, what is under way, what comes next and why it waits."""
        return view()

    @router.get("/", include_in_schema=False)
    def now_page(request: Request) -> HTMLResponse:
        return renderer.page(request, "now.html", title="Now", view=view())

    @router.get("/now/part", include_in_schema=False)
    def now_part(request: Request) -> HTMLResponse:
        return renderer.page(request, "_now.html", view=view())


def _timeline(router: APIRouter, desk: Desk, renderer: Renderer) -> None:
    def view(before: int | None, everything: bool) -> TimelineView:
        with desk.reading() as ledger:
            return timeline(ledger, before, everything=everything)

    def at(moment: str) -> LiveAt:
        with desk.reading() as ledger:
            return live_at(ledger, moment_of(moment))

    @router.get("/api/timeline")
    def timeline_json(before: Before = None, everything: bool = False) -> TimelineView:
        """What happened, the newest first."""
        return view(before, everything)

    @router.get("/api/live-at")
    def live_at_json(moment: str) -> LiveAt:
        """What was live at a moment: ISO 8601, in UTC where it names no zone."""
        return at(moment)

    @router.get("/timeline", include_in_schema=False)
    def timeline_page(
        request: Request, before: Before = None, everything: bool = False, moment: str = ""
    ) -> HTMLResponse:
        return renderer.page(
            request,
            "timeline.html",
            title="Timeline",
            view=view(before, everything),
            everything=everything,
            moment=moment,
            found=at(moment) if moment.strip() else None,
        )


class ReplicasView(BaseModel):
    """`/api/replicas`; none where the daemon's loop does not answer."""

    replicas: tuple[ReplicaView, ...]


class FeedsView(BaseModel):
    """`/api/feeds`: `polled` is when each last gave something, `places` where it was read up to."""

    feeds: tuple[FeedView, ...]
    addresses: dict[str, str]
    polled: dict[str, datetime]
    places: dict[str, str]


def _fleet(router: APIRouter, desk: Desk, renderer: Renderer) -> None:
    def replicas() -> ReplicasView:
        live = desk.live.now()
        return ReplicasView(replicas=live.replicas if live else ())

    def feeds() -> FeedsView:
        live = desk.live.now()
        names = [feed.name for feed in desk.settings.feeds]
        with desk.reading() as ledger:
            places = {name: ledger.feeds.cursor(name) or "" for name in names}
            polled = ledger.feeds.polled()
        return FeedsView(
            feeds=live.feeds if live else (),
            # What follows the question mark may be somebody's key.
            addresses={feed.name: feed.url.partition("?")[0] for feed in desk.settings.feeds},
            polled=polled,
            places=places,
        )

    @router.get("/api/replicas")
    def replicas_json() -> ReplicasView:
        """What each replica should serve, what it does serve, and when that was verified."""
        return replicas()

    @router.get("/replicas", include_in_schema=False)
    def replicas_page(request: Request) -> HTMLResponse:
        return renderer.page(request, "replicas.html", title="Replicas", view=replicas())

    @router.get("/api/feeds")
    def feeds_json() -> FeedsView:
        """How each feed's last polls went, and when it is asked next."""
        return feeds()

    @router.get("/feeds", include_in_schema=False)
    def feeds_page(request: Request) -> HTMLResponse:
        return renderer.page(request, "feeds.html", title="Feeds", view=feeds())


def moment_of(text: str) -> datetime:
    """A moment as a person writes it; raises `RequestRefused`."""
    try:
        moment = datetime.fromisoformat(text.strip())
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise RequestRefused(
            f"{text[:40]!r} is no moment: write 2026-01-31 14:05, in UTC, or with a zone"
        ) from None
