"""Server or daemon killed anywhere in a promotion: the alias ends on the target, verified."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from adapters.generate import Generator
from daemon.serving import identity, pointer
from policies.errors import ServerRefused
from policies.records import Revision
from tests.support import live
from tests.support.live import PROMPTS, Live

POINTS = (
    "serve:before-load",
    "serve:loaded",
    "serve:verified",
    "serve:before-flip",
    "serve:flipped",
    "serve:checked",
    "serve:retired",
)
PROMOTE = """
import asyncio, sys, time
from pathlib import Path
from daemon.serving import replicas
from daemon.config.settings import Settings
from policies.records import Revision
settings = Settings.model_validate_json(sys.argv[1])
target, former = (Revision.model_validate_json(a) for a in sys.argv[2:4])
async def main():
    servers = replicas.connect(settings)
    fleet = replicas.fleet(settings, servers)
    fleet.common.drain_s = 0.0
    for _ in range(3):
        await fleet.ensure(target, former)
    print("alive")
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def made(site: Live) -> dict[int, Revision]:
    generator = Generator(site.model_dir, max_rank=16, device=torch.device("cpu"))
    return {n: live.publish(generator, site.served, n) for n in range(1, len(POINTS) + 4)}


def healed(site: Live, target: Revision, former: Revision) -> None:
    """One reconcile by a new daemon, and then the alias answers as the target revision does."""
    result = site.fleet(lambda fleet: fleet.ensure(target, former))
    assert result.done, result.replicas
    assert result.replicas[0].active == target.served_name
    assert result.replicas[0].verified_at is not None
    answers = site.do(
        lambda s: s.complete("live", PROMPTS, max_tokens=8, ignore_eos=True), admin=False
    )
    assert {a.headers["x-palorad-revision"] for a in answers} == {str(target.number)}
    known = identity.read(site.served / target.served_name)
    assert identity.mismatch(known, answers) is None


@pytest.mark.parametrize("at", POINTS)
def test_the_daemon_killed_at_any_step(site: Live, made: dict[int, Revision], at: str) -> None:
    number = POINTS.index(at) + 2
    target, former = made[number], made[number - 1]
    site.fleet(lambda fleet: fleet.ensure(former))
    if at == "serve:retired":
        older = made[number - 2]
        site.do(lambda s: s.load(older.served_name, str(site.served / older.served_name)))
    run = subprocess.run(
        [
            *(sys.executable, "-c", PROMOTE, site.settings.model_dump_json()),
            *(target.model_dump_json(), former.model_dump_json()),
        ],
        env={**os.environ, "PALORAD_DIE_AT": at, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == -9, run.stdout + run.stderr
    flipped = pointer.read(site.settings.layout.alias)
    assert flipped is not None
    after_flip = POINTS.index(at) >= POINTS.index("serve:flipped")
    assert flipped.model == (target if after_flip else former).served_name
    # Between the daemon's death and its return the alias answers, from what was verified.
    (answer,) = site.do(lambda s: s.complete("live", ["x"], max_tokens=1), admin=False)
    assert answer.headers["x-palorad-model"] == flipped.model
    healed(site, target, former)


def test_the_server_killed_during_a_promotion(site: Live, made: dict[int, Revision]) -> None:
    target, former = made[len(POINTS) + 2], made[len(POINTS) + 1]
    site.fleet(lambda fleet: fleet.ensure(former))
    killer = threading.Timer(0.02, site.kill)
    killer.start()
    result = site.fleet(lambda fleet: fleet.ensure(target, former))
    killer.join()
    gone = site.fleet(lambda fleet: fleet.ensure(target, former))
    assert not gone.done
    assert not gone.replicas[0].healthy
    assert "is the server running" in gone.replicas[0].reason
    assert gone.replicas[0].active is None
    site.start()
    assert result.replicas
    with pytest.raises(ServerRefused) as refused:
        site.do(lambda s: s.complete("live", ["x"], max_tokens=1), admin=False)
    assert refused.value.status == 503
    begun = time.monotonic()
    healed(site, target, former)
    assert time.monotonic() - begun < 30
