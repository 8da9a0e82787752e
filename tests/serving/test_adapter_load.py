"""What vLLM's metrics say of adapters, read from answers of the real server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from daemon.serving.adapter_load import AdapterLoad, adapter_load
from daemon.serving.client import MOST_METRICS, HttpServer, Timeouts
from policies.errors import ServerRefused, ServerUnreachable

RECORDED = Path(__file__).parents[1] / "support" / "vllm_metrics.txt"


def test_the_latest_of_the_series_counts() -> None:
    """vLLM keeps each set of adapters that it ever had at work; the value is when it was seen."""
    text = RECORDED.read_text()
    series = re.findall(r"^vllm:lora_requests_info\{.*$", text, re.MULTILINE)
    assert len(series) > 1
    load = adapter_load(text)
    assert load.slots == 4
    assert [name[:14] for name in load.busy] == ["palora-000001-", "palora-000002-"]


def test_a_server_that_has_computed_nothing_yet_says_nothing() -> None:
    others = [line for line in RECORDED.read_text().splitlines() if "lora_requests" not in line]
    assert adapter_load("\n".join(others)) == AdapterLoad()


def asked(content: AsyncIterator[bytes] | bytes, status: int = 200) -> AdapterLoad:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, content=content)

    async def run() -> AdapterLoad:
        transport = httpx.MockTransport(answer)
        server = HttpServer("http://s", timeouts=Timeouts(health_s=0.5), transport=transport)
        try:
            return await server.metrics()
        finally:
            await server.aclose()

    return asyncio.run(run())


def test_metrics_are_read_up_to_a_size_and_for_a_time() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 2**20

    async def slow() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0.05)

    assert asked(RECORDED.read_bytes()).busy
    with pytest.raises(ServerRefused, match=str(MOST_METRICS)):
        asked(endless())
    with pytest.raises(ServerUnreachable):
        asked(slow())


@pytest.mark.parametrize(
    "text",
    [
        b"vllm:lora_requests_info{ 1",
        b'vllm:lora_requests_info{max_lora="many",running_lora_adapters="",'
        b'waiting_lora_adapters=""} 1',
        b'vllm:lora_requests_info{max_lora="1"} 1',
        b"vllm:lora_requests_info{\xff} 1",
    ],
)
def test_what_is_no_such_metric_is_refused(text: bytes) -> None:
    with pytest.raises(ServerRefused):
        asked(text)
