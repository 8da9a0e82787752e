"""What every request passes before anything reads it: who may ask, how much, what may be run."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY: Final = 16 * 2**20
BODY_S: Final = 30.0
SMALL_BODY: Final = 64 * 2**10
# So many times the largest body is what all bodies together may take.
LARGE_BODIES: Final = 4
_LENGTH: Final = re.compile(r"[0-9]{1,18}\Z")
_HOST: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?\Z")
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
    the page's own origin where a browser says where it comes from. Bodies are limited: each in
    size and in the time that it takes to come, and all that are here in their sum.
    """

    def __init__(self, app: ASGIApp, max_body: int = MAX_BODY, body_s: float = BODY_S) -> None:
        self._app = app
        self._max_body = max_body
        self._body_s = body_s
        self._here = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse with 400, 403, 408, 413 or 503."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif refusal := self._refusal(scope["method"], Headers(scope=scope)):
            refused = PlainTextResponse(refusal[1] + "\n", refusal[0])
            await refused(scope, receive, _with_headers(send))
        else:
            async with self._limited(receive) as limited:
                await self._app(scope, limited, _with_headers(send))

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
        if not _LENGTH.match(length) or int(length) > self._max_body:
            return 413, self._large
        return None

    @asynccontextmanager
    async def _limited(self, receive: Receive) -> AsyncIterator[Receive]:
        so_far, whole = 0, False
        until = asyncio.get_running_loop().time() + self._body_s

        async def limited() -> Message:
            nonlocal so_far, whole
            try:
                # Once the body is here, what is waited for is the client's going away.
                async with asyncio.timeout_at(None if whole else until):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408, f"the body did not come within {self._body_s:g} s"
                ) from None
            size = len(message.get("body", b""))
            so_far, self._here = so_far + size, self._here + size
            whole = not message.get("more_body", False)
            if so_far > self._max_body:
                raise HTTPException(413, self._large)
            if so_far > SMALL_BODY and self._here > LARGE_BODIES * self._max_body:
                raise HTTPException(503, "too many large bodies at once; try again")
            return message

        try:
            yield limited
        finally:
            self._here -= so_far


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
    found = _HOST.match(host)
    if found is None:
        return False
    name = found[1].strip("[]").lower()
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
