"""HTTP to addresses that a feed may be fetched from: nothing private, nothing without end."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final, cast

import httpcore
import httpx

from policies.errors import FeedFailed

_ACCEPTED: Final = ("", "identity", "gzip", "deflate")
_PIECE: Final = 1 << 16
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

Option = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]


class PublicOnly(httpcore.AsyncNetworkBackend):
    """Connects to the very address that was checked, so that a name cannot change in between."""

    def __init__(self) -> None:
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface of httpcore
        local_address: str | None = None,
        socket_options: Iterable[Option] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve, check every address, connect to the first."""
        addresses = await resolve(host, port)
        for address in addresses:
            if not is_public(address):
                raise FeedFailed(
                    f"{host} is the private address {address}; set allow_private to ask it",
                    final=True,
                )
        return await self._backend.connect_tcp(
            addresses[0], port, timeout, local_address, socket_options
        )

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface of httpcore
        socket_options: Iterable[Option] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Never."""
        raise FeedFailed(f"{path} is no address of a feed", final=True)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host; raises `FeedFailed`."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise FeedFailed(f"{host} is not known: {error.strerror or error}") from None
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def is_public(address: str) -> bool:
    """Whether an address is of the public internet, also when it is wrapped in IPv6."""
    parsed = ipaddress.ip_address(address.split("%", maxsplit=1)[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo and parsed.teredo[1])
        if parsed in _NAT64:
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner:
            return is_public(str(inner))
    return parsed.is_global and not parsed.is_multicast


class GuardedTransport(httpx.AsyncBaseTransport):
    """httpx's transport over a pool that connects to public addresses only."""

    def __init__(self) -> None:
        context = ssl.create_default_context()
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context, network_backend=PublicOnly(), max_connections=16
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One request, its body streamed."""
        answer = await self._pool.handle_async_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(
                    scheme=request.url.raw_scheme,
                    host=request.url.raw_host,
                    port=request.url.port,
                    target=request.url.raw_path,
                ),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=_Stream(cast(AsyncIterator[bytes], answer.stream)),
            extensions=answer.extensions,
        )

    async def aclose(self) -> None:
        """Close the pool."""
        await self._pool.aclose()


class _Stream(httpx.AsyncByteStream):
    def __init__(self, inner: Any) -> None:  # noqa: ANN401 - httpcore's stream has no public name
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for block in self._inner:
            yield block

    async def aclose(self) -> None:
        await self._inner.aclose()


async def bounded_body(response: httpx.Response, limit: int) -> AsyncIterator[bytes]:
    """The decompressed body in pieces of at most 64 KiB; raises `FeedFailed` beyond `limit` bytes.

    However strongly the body is compressed, never more than a piece of it is in memory.
    """
    coding = response.headers.get("content-encoding", "").strip().lower()
    if coding not in _ACCEPTED:
        raise FeedFailed(f"answers in the coding {coding[:20]!r}, which was not asked for")
    total = 0
    async for piece in _pieces(response, coding):
        total += len(piece)
        if total > limit:
            raise FeedFailed(f"answers with more than {limit / 2**20:g} MiB (setting max_mb)")
        yield piece


async def _pieces(response: httpx.Response, coding: str) -> AsyncIterator[bytes]:
    if coding in ("", "identity"):
        async for block in response.aiter_raw():
            for start in range(0, len(block), _PIECE):
                yield block[start : start + _PIECE]
        return
    unpacker = zlib.decompressobj(wbits=47)
    try:
        async for block in response.aiter_raw():
            waiting = block
            while waiting and not unpacker.eof:
                yield unpacker.decompress(waiting, _PIECE)
                waiting = unpacker.unconsumed_tail
        while rest := unpacker.decompress(unpacker.unconsumed_tail, _PIECE):
            yield rest
    except zlib.error as error:
        raise FeedFailed(f"answers with broken {coding}: {error}") from None
    if not unpacker.eof:
        raise FeedFailed(f"answers with {coding} that is cut off")
