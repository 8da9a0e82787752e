"""What every request passes before anything reads it: who may ask, how much, what may be run."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY: Final = 16 * 2**20
SAFE: Final = frozenset({"GET", "HEAD"})
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware around the whole application.

    A Host that is not this host is refused: a name that an attacker has pointed at the loopback
    address would else make his page the page's own origin. What changes something must come from
    the page's own origin where a browser says where it comes from.
    """

    def __init__(self, app: ASGIApp, max_body: int = MAX_BODY) -> None:
        self._app = app
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse with 400, 403 or 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope["method"], Headers(scope=scope))
        if refusal is None:
            await self._app(scope, self._limited(receive), _with_headers(send))
        else:
            refused = PlainTextResponse(refusal[1] + "\n", refusal[0])
            await refused(scope, receive, _with_headers(send))

    @property
    def _large(self) -> str:
        return f"more than {self._max_body // 2**20} MiB: put the file into the inbox instead"

    def _refusal(self, method: str, headers: Headers) -> tuple[int, str] | None:
        host = headers.getlist("host")
        if len(host) != 1 or not is_loopback(host[0]):
            return 400, "ask this page by localhost or a loopback address"
        if method not in SAFE and not _own(headers, host[0]):
            return 403, "a change must come from this page itself"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._max_body:
            return 413, self._large
        return None

    def _limited(self, receive: Receive) -> Receive:
        so_far = 0

        async def limited() -> Message:
            nonlocal so_far
            message = await receive()
            so_far += len(message.get("body", b""))
            if so_far > self._max_body:
                raise HTTPException(413, self._large)
            return message

        return limited


def _with_headers(send: Send) -> Send:
    """Whatever is answered has the headers."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sent


def is_loopback(host: str) -> bool:
    """Whether a Host header, with or without a port, names this host by a loopback address."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _own(headers: Headers, host: str) -> bool:
    """Whether a request comes from the page's own origin, or from no browser at all."""
    fetched: Iterable[str] = headers.getlist("sec-fetch-site")
    if any(site not in ("same-origin", "none") for site in fetched):
        return False
    return all(_authority(origin) == host for origin in headers.getlist("origin"))


def _authority(origin: str) -> str:
    try:
        split = urlsplit(origin)
    except ValueError:
        return ""
    return split.netloc if split.scheme in ("http", "https") else ""
