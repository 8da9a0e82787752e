"""Many replicas promoted and rolled back as one while some fail, are slow, hang and restart."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from adapters.generate import Generator
from benchmarks.scale.replicas import Heart
from daemon.serving import pointer
from daemon.serving.client import HttpServer, Timeouts
from daemon.serving.common import Common
from daemon.serving.fleet import Ensured, Fleet
from policies.records import Revision
from tests.support import live
from tests.support.live import BASE, Live
from tests.support.many_replicas import ManyReplicas
from tests.support.traffic import Traffic

SLOW, HUNG, DOWN, REFUSES, LOST_LATER = range(5)
ALIAS = "live"


@dataclass
class Site:
    """Real servers and simulated ones behind one pointer; the simulated ones can be told things."""

    real: list[Live]
    simulated: ManyReplicas
    state: Path
    revisions: list[Revision]
    skew_s: float = 0.0
    fleet: Fleet = field(init=False)

    @property
    def urls(self) -> list[str]:
        return [*self.simulated.urls, *(one.url for one in self.real)]

    @asynccontextmanager
    async def daemon(self) -> AsyncIterator[None]:
        """The fleet of a daemon that has just begun."""
        key, limits = (self.state / "admin.key").read_text().strip(), Timeouts(health_s=5)
        servers = [HttpServer(url, admin_key=key, timeouts=limits) for url in self.urls]
        common = Common(alias=ALIAS, base="base", served=self.state / "served")
        common.monotonic = lambda: time.monotonic() + self.skew_s
        self.fleet = Fleet(servers, self.state / "alias.json", common)
        try:
            yield
        finally:
            for server in servers:
                await server.aclose()

    async def tell(self, number: int, *order: str) -> None:
        await asyncio.to_thread(self.simulated.tell, number, *order)

    def others(self, revision: Revision) -> set[int]:
        """Which replicas do not answer from a revision, by their numbers."""
        statuses = enumerate(self.fleet.statuses)
        return {n for n, one in statuses if one.active != revision.served_name}


def _site(state: Path, model: Path, kind: str, real: int, simulated: int) -> Iterator[Site]:
    with ExitStack() as stack:
        servers = [Live(kind, state, model) for _ in range(real)]
        for one in servers:
            one.start(wait=False)
            stack.callback(one.stop)
        generator = Generator(model, max_rank=16, device=torch.device("cpu"))
        layout = Live(kind, state, model).settings.layout
        revisions = [live.publish(generator, layout.served, number) for number in (1, 2)]
        many = ManyReplicas(layout.alias, layout.admin_key, layout.served, simulated)
        stack.enter_context(many)
        for one in servers:
            one.wait(100)
        yield Site(servers, many, state, revisions)


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    kind, real, simulated = request.param
    yield from _site(tmp_path / "state", live.model(tmp_path / "model"), kind, real, simulated)


@pytest.mark.parametrize(
    "site",
    [
        pytest.param(("embedded", 0, 12), id="12 simulated"),
        pytest.param(("embedded", 3, 100), id="3 real, 100 simulated", marks=[pytest.mark.scale]),
        pytest.param(
            ("vllm", 1, 100),
            id="vLLM, 100 simulated",
            marks=[pytest.mark.vllm, pytest.mark.timeout(300)],
        ),
    ],
    indirect=True,
)
@pytest.mark.timeout(120)
def test_many_replicas_are_promoted_and_rolled_back_as_one(site: Site) -> None:
    asyncio.run(_promote_and_roll_back(site))


async def _promote_and_roll_back(site: Site) -> None:
    heart = Heart()
    beating = asyncio.create_task(heart.beat())
    async with site.daemon(), Traffic(site.urls, ALIAS) as traffic:
        await _until_done(site, BASE, BASE)
        await _until_done(site, site.revisions[0], BASE)
        await _one_that_refuses_keeps_the_former(site, traffic)
        await _troubled_ones_do_not_mix_revisions(site, traffic)
        await _who_comes_back_routes_nothing_unverified(site, traffic)
        await _a_rollback_waits_for_nobody(site, traffic)
    beating.cancel()
    assert heart.longest_s < 1.0


async def _one_that_refuses_keeps_the_former(site: Site, traffic: Traffic) -> None:
    one, two = site.revisions
    since = time.monotonic()
    await site.tell(REFUSES, "refuse", two.served_name)
    assert not (await site.fleet.ensure(two, one)).done
    assert traffic.said(site.urls, since) == {"1"}
    assert "500" in site.fleet.statuses[REFUSES].reason
    await site.tell(REFUSES, "mend")
    site.skew_s += 60


async def _troubled_ones_do_not_mix_revisions(site: Site, traffic: Traffic) -> None:
    """Loading goes on until the slowest has loaded; then all switch at once."""
    one, two = site.revisions
    since = time.monotonic()
    for number, order in ((SLOW, ["slow", "2"]), (HUNG, ["hang"]), (DOWN, ["down"])):
        await site.tell(number, *order)
    # The rest holds it already: they are made to load it again.
    for number in (SLOW, LOST_LATER):
        await site.tell(number, "down")
        await site.tell(number, "up")
    result = await site.fleet.ensure(two, one)
    assert result.answering
    assert not result.done
    assert site.others(two) == {HUNG, DOWN}
    assert time.monotonic() - since > 2
    assert await traffic.ask_all(u for n, u in enumerate(site.urls) if n not in {HUNG, DOWN}) == {
        "2"
    }
    assert traffic.overlap_s("1", "2", since) <= 0
    assert traffic.said(site.urls[LOST_LATER + 1 :], since) == {"1", "2"}


async def _who_comes_back_routes_nothing_unverified(site: Site, traffic: Traffic) -> None:
    one, two = site.revisions
    await site.tell(HUNG, "mend")
    await site.tell(DOWN, "up")
    assert await traffic.ask(site.urls[HUNG]) == "2"  # it was verified there before it hung
    assert await traffic.ask(site.urls[DOWN]) == "503"
    site.skew_s += 60
    await _until_done(site, two, one)
    assert await traffic.ask_all(site.urls) == {"2"}


async def _a_rollback_waits_for_nobody(site: Site, traffic: Traffic) -> None:
    """The former revision is still loaded; who is lost, or has to load it slowly, is left out."""
    one, two = site.revisions
    await site.tell(LOST_LATER, "down")
    await site.tell(HUNG, "hang")
    since = time.monotonic()
    result = await site.fleet.ensure(one, two, may_stay=lambda number: number != 2)
    assert result.answering
    flipped = pointer.read(site.state / "alias.json")
    assert flipped is not None
    assert flipped.revision == 1
    late = site.others(one)
    assert {LOST_LATER, HUNG} <= late <= {SLOW, LOST_LATER, HUNG}
    assert await traffic.ask_all(site.urls[LOST_LATER + 1 :]) == {"1"}
    assert traffic.overlap_s("2", "1", since) <= 0
    assert min(a.ended for a in traffic.answers if a.began > since and a.said == "1") - since < 5
    assert traffic.said(site.urls[LOST_LATER + 1 :], since) == {"1", "2"}
    await site.tell(LOST_LATER, "up")
    await site.tell(HUNG, "mend")
    await _until_done(site, one, two)
    assert await traffic.ask_all(site.urls) == {"1"}


async def _until_done(site: Site, target: Revision, previous: Revision) -> Ensured:
    """One that hung is not waited for, so that it may take another look."""
    for _ in range(20):
        if (result := await site.fleet.ensure(target, previous)).done:
            return result
        await asyncio.sleep(0.2)
    raise AssertionError([one.reason for one in site.fleet.statuses if one.reason])
