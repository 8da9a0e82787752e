"""Templates: everything is text unless a drawing of ours says otherwise."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from daemon.views.explain import rate_text
from daemon.web import drawing
from daemon.web.desk import Desk
from policies.text import harmless

HERE: Final = Path(__file__).parent
PAGES: Final = (
    *(("/", "Now"), ("/timeline", "Timeline"), ("/plans", "Plans"), ("/facts", "Facts")),
    *(("/drop", "Add facts"), ("/quarantine", "Quarantine"), ("/retention", "Retention")),
    *(("/feeds", "Feeds"), ("/replicas", "Replicas"), ("/capacity", "Capacity")),
    *(("/probe", "Probe"),),
)


class Renderer:
    """Fills templates; every value in them is escaped, and its control characters made visible."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._env = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_shown,
            auto_reload=False,
        )
        self._env.globals.update(pages=PAGES, draw=drawing, rate_text=rate_text)
        self._env.filters.update(
            clock=_clock, short=_short, ago=self._ago, span=span, size=size, plural=plural
        )

    def page(
        self, request: Request, template: str, status: int = 200, /, **values: object
    ) -> HTMLResponse:
        """A whole page, or what stands on it, as the template says."""
        session = self._desk.operators.session(request)
        given: Mapping[str, Any] = {
            "path": request.url.path,
            "session": session,
            "notice": self._notice(request),
            "base_name": self._desk.settings.model.alias,
            **values,
        }
        return HTMLResponse(self._env.get_template(template).render(given), status)

    def back_to(self, path: str, line: str) -> RedirectResponse:
        """A page of ours, with a line on what was done."""
        there = path if path.startswith("/") and not path.startswith(("//", "/\\")) else "/"
        said = urlencode({"said": line, "mark": self._desk.operators.mark(line)})
        return RedirectResponse(f"{there}{'&' if '?' in there else '?'}{said}", 303)

    def _notice(self, request: Request) -> str:
        asked = request.query_params
        line, mark = asked.get("said", ""), asked.get("mark", "")
        ours = self._desk.operators.mark(line)
        return line if line and hmac.compare_digest(mark.encode(), ours.encode()) else ""

    def _ago(self, moment: datetime | None) -> str:
        if moment is None:
            return "–"
        return f"{span((self._desk.wall() - moment).total_seconds())} ago"


def _shown(value: object) -> object:
    if value is None:
        return "–"
    return harmless(value, keep="\n") if type(value) is str else value


def _clock(moment: datetime | None) -> str:
    return "–" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _short(identity: str | None) -> str:
    return "–" if identity is None else identity[:12]


def plural(count: int, one: str, many: str = "") -> str:
    """A count with its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def span(seconds: float | None) -> str:
    """A duration in the one or two units that matter."""
    if seconds is None:
        return "–"
    left = max(0, round(seconds))
    for unit, length, lesser, smaller in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if left >= length:
            rest = left % length // smaller
            return f"{left // length} {unit}" + (f" {rest} {lesser}" if rest else "")
    return f"{left} s"


def size(count: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
