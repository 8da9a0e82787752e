"""HTTP connections to a server: many at once, none kept for long."""

from __future__ import annotations

from typing import Final

import httpx

POOLS: Final = 8
# A request whose connection never stood has had no effect: asking again is safe.
CONNECT_RETRIES: Final = 1
# vLLM closes what has been idle for five seconds, and a request may be on its way by then.
LIMITS: Final = httpx.Limits(
    max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0
)


class Connections(httpx.AsyncBaseTransport):
    """httpx's transport over several pools; a request takes the one with the fewest under way.

    Whenever a request begins or ends, httpcore looks through its pool, and for each idle
    connection through all of it again: with 64 in one pool that was most of a short request's cost.
    """

    def __init__(self, url: str) -> None:
        # Reading the certificates takes 20 ms: once, and only where they are needed.
        tls = httpx.create_ssl_context(verify=url.startswith("https:"), trust_env=False)
        self._pools = [
            httpx.AsyncHTTPTransport(
                retries=CONNECT_RETRIES, limits=LIMITS, trust_env=False, verify=tls
            )
            for _ in range(POOLS)
        ]
        self._under_way = [0] * POOLS

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The response as soon as its head is there."""
        chosen = self._under_way.index(min(self._under_way))
        self._under_way[chosen] += 1
        try:
            return await self._pools[chosen].handle_async_request(request)
        finally:
            self._under_way[chosen] -= 1

    async def aclose(self) -> None:
        """Close all connections."""
        for pool in self._pools:
            await pool.aclose()
