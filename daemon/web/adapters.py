"""Figures of adapters, as each replica tells them; asked for beside the scrapes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from daemon.config.settings import Settings
from daemon.serving.adapter_load import AdapterLoad
from daemon.serving.client import GatewayState, HttpServer
from daemon.serving.replicas import connect
from policies.errors import ServerRefused, ServerUnreachable

EVERY_S: Final = 5.0
LIMIT_S: Final = 5.0
_LABELS: Final = ("replica", "adapter")

Told = tuple[GatewayState, AdapterLoad]


def told_by_replicas(settings: Settings) -> dict[str, Told]:
    """What each replica says of its adapters, by its URL; without those that do not answer.

    Takes as long as the slowest of them, at most `LIMIT_S`; in a thread without a loop.
    """
    return asyncio.run(_all(settings))


async def _all(settings: Settings) -> dict[str, Told]:
    servers = connect(settings)
    try:
        told = await asyncio.gather(*map(_one, servers))
    finally:
        for server in servers:
            await server.aclose()
    return {
        server.url: found for server, found in zip(servers, told, strict=True) if found is not None
    }


async def _one(server: HttpServer) -> Told | None:
    try:
        async with asyncio.timeout(LIMIT_S):
            return await server.gateway(), await server.metrics()
    except (TimeoutError, ServerRefused, ServerUnreachable):
        return None


def families(told: Mapping[str, Told], base: str) -> Iterator[Metric]:
    """The figures; what was asked of no adapter counts as asked of `base`."""
    answered = CounterMetricFamily(
        "palorad_adapter_requests", "requests that an adapter has answered", labels=_LABELS
    )
    under_way = GaugeMetricFamily(
        "palorad_adapter_requests_in_flight", "requests that it answers now", labels=_LABELS
    )
    busy = GaugeMetricFamily(
        "palorad_adapter_busy", "1 while the server says it has requests for it", labels=_LABELS
    )
    slots = GaugeMetricFamily(
        "palorad_adapter_slots", "adapters that may meet in one step", labels=["replica"]
    )
    for replica, (gateway, load) in told.items():
        names = sorted({*gateway.answered, *gateway.in_flight, *load.busy})
        for name in names:
            named = [replica, name or base]
            answered.add_metric(named, gateway.answered.get(name, 0))
            under_way.add_metric(named, gateway.in_flight.get(name, 0))
            busy.add_metric(named, int(name in load.busy))
        if load.slots is not None:
            slots.add_metric([replica], load.slots)
    yield from (answered, under_way, busy, slots)
