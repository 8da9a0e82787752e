"""HTTP to one server: who listens shows that it has the admin key, then requests are signed."""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx

from daemon.serving import alias
from daemon.serving.connections import Connections
from policies.errors import ServerRefused, ServerUnreachable

SIGNED: Final = "x-palorad-signed"
NONCE: Final = "x-palorad-nonce"
NO_RIGHT: Final = frozenset({401, 403})


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: until a connection stands, and until each kind of answer is there."""

    connect_s: float = 5.0
    health_s: float = 5.0
    request_s: float = 120.0
    load_s: float = 60.0


class Wire:
    """Sends requests to `url`; the admin key itself never leaves this process.

    With an admin key `send` first has whoever listens show that it has the key too: it answers a
    fresh nonce with an HMAC. A request then carries an HMAC over its method, target and body that
    counts only in the process that has shown it, so that what another one hears is of no use.
    """

    def __init__(
        self,
        url: str,
        admin_key: str | None,
        user_key: str | None,
        timeouts: Timeouts,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        self._url = url
        self._timeouts = timeouts
        # What palorad asks the alias itself is always of the live revision.
        self._user = {alias.CANARY.decode(): alias.NEVER.decode()}
        if user_key is not None:
            self._user["authorization"] = f"Bearer {user_key}"
        self._key = None if admin_key is None else admin_key.encode()
        self._boot: str | None = None
        self._client = httpx.AsyncClient(
            base_url=url,
            transport=transport or Connections(url),
            timeout=httpx.Timeout(timeouts.request_s, connect=timeouts.connect_s),
            trust_env=False,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def forget(self) -> None:
        """Have whoever listens show again that it has the key."""
        self._boot = None

    async def send(
        self, method: str, path: str, body: object = None, *, timeout_s: float
    ) -> httpx.Response:
        """A request with the rights of the keys; `body` is sent as JSON.

        `ServerRefused` 403 where who listens does not show the admin key, 404 where palorad's
        middleware is not in it; `ServerUnreachable` where there is no answer.
        """
        headers, content = dict(self._user), b""
        if body is not None:
            content = json.dumps(body, separators=(",", ":")).encode()
            headers["content-type"] = "application/json"
        if self._key is None:
            return await self.ask(method, path, headers, content, timeout_s=timeout_s)
        known = self._boot
        response = await self._signed(self._key, method, path, headers, content, timeout_s)
        if response.status_code in NO_RIGHT and known is not None:
            # Another process has begun there since; refused, the request has had no effect.
            self.forget()
            response = await self._signed(self._key, method, path, headers, content, timeout_s)
        return response

    async def _signed(
        self,
        key: bytes,
        method: str,
        path: str,
        headers: Mapping[str, str],
        content: bytes,
        timeout_s: float,
    ) -> httpx.Response:
        boot = self._boot = self._boot or await self._proven(key)
        signed = {SIGNED: alias.signature(key, boot, method, path, content)}
        try:
            return await self.ask(method, path, {**headers, **signed}, content, timeout_s=timeout_s)
        except ServerUnreachable:
            self.forget()
            raise

    async def _proven(self, key: bytes) -> str:
        """What the process that listens calls itself, once it has shown that it has the key."""
        nonce = secrets.token_hex(16)
        path, limit_s = "/palorad/hello", self._timeouts.health_s
        response = await self.ask("GET", path, {NONCE: nonce}, timeout_s=limit_s)
        said = decoded(require_ok(self._url, response))
        boot, shown = str(said.get("boot")), str(said.get("proof"))
        if not hmac.compare_digest(shown.encode(), alias.proof(key, boot, nonce).encode()):
            raise ServerRefused(f"{self._url} does not show that it has the admin key", status=403)
        return boot

    async def read(self, path: str, *, most: int, timeout_s: float) -> bytes:
        """What an admin route says, of which it is not known how long it is.

        Raises as `send` does, also where it is longer than `most` bytes or takes longer than
        `timeout_s` in all.
        """
        headers = dict(self._user)
        if self._key is not None:
            boot = self._boot = self._boot or await self._proven(self._key)
            headers[SIGNED] = alias.signature(self._key, boot, "GET", path, b"")
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._client.stream("GET", path, headers=headers) as response,
            ):
                body = b""
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > most:
                        raise ServerRefused(
                            f"{self._url} gave more than {most} bytes of {path}", status=502
                        )
        except (TimeoutError, httpx.HTTPError) as error:
            self.forget()
            raise ServerUnreachable(
                f"{self._url} gave no answer to GET {path} within {timeout_s:g} s"
            ) from error
        if response.status_code >= 400:
            self.forget()
            raise ServerRefused(
                f"{self._url} answered {response.status_code} to {path}",
                status=response.status_code,
            )
        return body

    async def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
        *,
        timeout_s: float,
    ) -> httpx.Response:
        """A request as it is, without any key; `ServerUnreachable` where there is no answer."""
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, self._timeouts.connect_s))
        try:
            return await self._client.request(
                method, path, content=content or None, headers=headers, timeout=timeout
            )
        except httpx.ConnectTimeout as error:
            raise ServerUnreachable(
                f"{self._url} took no connection for {method} {path} within {timeout.connect:g} s"
            ) from error
        except httpx.TimeoutException as error:
            raise ServerUnreachable(
                f"{self._url} gave no answer to {method} {path} within {timeout_s:g} s"
            ) from error
        except httpx.HTTPError as error:
            raise ServerUnreachable(
                f"{self._url} does not answer ({error}): is the server running there?"
            ) from error


def require_ok(url: str, response: httpx.Response) -> httpx.Response:
    """The response; `ServerRefused` with what it says where it is no."""
    if response.status_code >= 400:
        said = _said(response)
        raise ServerRefused(
            f"{url} answered {response.status_code} to {response.request.url.path}: {said}",
            status=response.status_code,
            body=said,
        )
    return response


def _said(response: httpx.Response) -> str:
    try:
        error = response.json()
        error = error.get("error", error) if isinstance(error, dict) else error
        message = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, UnicodeDecodeError):
        message = response.text
    return " ".join(str(message).split())[:500]


def decoded(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of a response; `ServerRefused` where it is none."""
    try:
        value = json.loads(response.content)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ServerRefused(f"{response.url} answered no JSON", status=response.status_code)
    return value


@contextmanager
def sensible(url: str) -> Iterator[None]:
    """`ServerRefused` where an answer has not the shape that is read in the block."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ServerRefused(
            f"{url} gave an answer of another shape ({type(error).__name__}: {error})", status=502
        ) from error
