"""HTTP to addresses that a feed may be fetched from: nothing private, nothing without end."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import httpcore
import httpx

from policies.errors import FeedFailed, LedgerBusy
from policies.text import storable

CONNECT_S: Final = 10.0
EXPECTED: Final = (
    FeedFailed,
    httpx.HTTPError,
    httpx.InvalidURL,
    OSError,
    LedgerBusy,
    UnicodeError,
    TimeoutError,
)
_ACCEPTED: Final = ("", "identity", "gzip", "deflate")
_PIECE: Final = 1 << 16
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_IETF: Final = (
    ipaddress.ip_network("192.0.0.0/24"),
    ipaddress.ip_network("192.88.99.0/24"),
    ipaddress.ip_network("3fff::/20"),
)
_HTTPX: Final[tuple[tuple[type[Exception], type[httpx.TransportError]], ...]] = (
    (httpcore.ConnectTimeout, httpx.ConnectTimeout),
    (httpcore.ReadTimeout, httpx.ReadTimeout),
    (httpcore.WriteTimeout, httpx.WriteTimeout),
    (httpcore.PoolTimeout, httpx.PoolTimeout),
    (httpcore.TimeoutException, httpx.ReadTimeout),
    (httpcore.ConnectError, httpx.ConnectError),
    (httpcore.ReadError, httpx.ReadError),
    (httpcore.WriteError, httpx.WriteError),
    (httpcore.NetworkError, httpx.NetworkError),
    (httpcore.LocalProtocolError, httpx.LocalProtocolError),
    (httpcore.RemoteProtocolError, httpx.RemoteProtocolError),
    (httpcore.ProtocolError, httpx.ProtocolError),
    (httpcore.UnsupportedProtocol, httpx.UnsupportedProtocol),
    (httpcore.ProxyError, httpx.ProxyError),
    (TimeoutError, httpx.ReadTimeout),
    (OSError, httpx.NetworkError),
)

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
    except UnicodeError as error:
        raise FeedFailed(f"{host[:80]} is no name of a host: {error}") from None
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def is_public(address: str) -> bool:
    """Whether an address is of the public internet, also when it is wrapped in IPv6.

    Of IPv6 only 2000::/3 is given out to be reached by everybody (IANA, IPv6 Address Space).
    """
    parsed = ipaddress.ip_address(address.split("%", maxsplit=1)[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        if wrapped := _wrapped(parsed):
            return all(is_public(str(inner)) for inner in wrapped)
        if parsed not in _UNICAST:
            return False
    return parsed.is_global and not parsed.is_multicast and not any(parsed in net for net in _IETF)


def _wrapped(address: ipaddress.IPv6Address) -> tuple[ipaddress.IPv4Address, ...]:
    """The IPv4 addresses that packets to `address` may reach: mapped, NAT64, 6to4, Teredo."""
    if address in _NAT64:
        return (ipaddress.IPv4Address(int(address) & 0xFFFFFFFF),)
    single = address.ipv4_mapped or address.sixtofour
    return (single,) if single else address.teredo or ()


@contextmanager
def as_httpx() -> Iterator[None]:
    """Raise what httpcore and the operating system raise as the error of httpx that it is."""
    try:
        yield
    except tuple(kind for kind, _ in _HTTPX) as error:
        mapped = next(to for kind, to in _HTTPX if isinstance(error, kind))
        raise mapped(str(error)) from error


def problem_line(error: Exception, timeout_s: float) -> str:
    """One line that says why a poll failed that may take `timeout_s` seconds."""
    if isinstance(error, httpx.ConnectTimeout):
        text = f"cannot be reached within {min(CONNECT_S, timeout_s):g} s"
    elif isinstance(error, TimeoutError | httpx.TimeoutException):
        text = f"gave no whole answer within {timeout_s:g} s"
    elif isinstance(error, httpx.TransportError):
        text = _reason(error)
    elif isinstance(error, EXPECTED):
        text = str(error)
    else:
        text = f"unexpected {type(error).__name__}: {error}; see the log"
    return storable(" ".join((text or type(error).__name__).split()), 300)


def _reason(error: httpx.TransportError) -> str:
    """What went wrong below HTTP: the words of TLS or of the operating system, where there are."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"TLS failed: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed: {(cause.reason or str(cause)).replace('_', ' ').lower()}"
        if isinstance(cause, OSError) and cause.errno and cause.errno in errno.errorcode:
            return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__  # the pool raises "from None"
    return str(error) or "the connection broke"


class GuardedTransport(httpx.AsyncBaseTransport):
    """httpx's transport over a pool that connects to public addresses only."""

    def __init__(self) -> None:
        context = ssl.create_default_context()
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context, network_backend=PublicOnly(), max_connections=16
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One request, its body streamed; raises `httpx.TransportError`, `FeedFailed`."""
        asked = httpcore.Request(
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
        with as_httpx():
            answer = await self._pool.handle_async_request(asked)
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=_Stream(cast(AsyncIterator[bytes], answer.stream)),
            extensions=answer.extensions,
        )

    async def aclose(self) -> None:
        """Close the pool."""
        with as_httpx():
            await self._pool.aclose()


class _Stream(httpx.AsyncByteStream):
    def __init__(self, inner: Any) -> None:  # noqa: ANN401 - httpcore's stream has no public name
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with as_httpx():
            async for block in self._inner:
                yield block

    async def aclose(self) -> None:
        with as_httpx():
            await self._inner.aclose()


async def bounded_body(response: httpx.Response, limit: int, why: str) -> AsyncIterator[bytes]:
    """The decompressed body in pieces of at most 64 KiB; raises `FeedFailed` beyond `limit` bytes,
    with `why` there is a limit.

    However strongly the body is compressed, never more than a piece of it is in memory.
    """
    coding = response.headers.get("content-encoding", "").strip().lower()
    if coding not in _ACCEPTED:
        raise FeedFailed(f"answers in the coding {coding[:20]!r}, which was not asked for")
    total = 0
    async for piece in _pieces(response, coding):
        total += len(piece)
        if total > limit:
            raise FeedFailed(f"answers with more than {limit / 2**20:g} MiB ({why})")
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
            while waiting:
                if unpacker.eof:  # gzip may come in several members, RFC 1952 section 2.2
                    unpacker = zlib.decompressobj(wbits=47)
                yield unpacker.decompress(waiting, _PIECE)
                waiting = unpacker.unconsumed_tail or unpacker.unused_data
        while rest := unpacker.decompress(unpacker.unconsumed_tail, _PIECE):
            yield rest
    except zlib.error as error:
        raise FeedFailed(f"answers with broken {coding}: {error}") from None
    if not unpacker.eof:
        raise FeedFailed(f"answers with {coding} that is cut off")
