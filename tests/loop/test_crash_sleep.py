"""Killed while the server falls asleep, sleeps or wakes, the daemon leaves it awake and verified.

The server is a stand-in for vLLM behind the real middleware, in a process of its own.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from daemon.base.control import ask
from daemon.base.faults import TRACE
from policies.records import BatchState
from tests.loop.test_crash import expect
from tests.support.crashing import Site

pytestmark = pytest.mark.timeout(300)

POINTS = ("sleep:before", "sleep:asleep", "train:started", "sleep:before-wake", "sleep:awake")


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "site", gpu_sharing="sleep")
    yield made
    made.close()


def url(one: Site) -> str:
    return one.settings.server.urls[0]


def admin(one: Site) -> dict[str, str]:
    return {"x-palorad-admin-key": one.layout.admin_key.read_text().strip()}


def complete(one: Site, model: str = "palora-live", prompt: str = "x") -> httpx.Response:
    body = {"model": model, "prompt": [prompt], "max_tokens": 1}
    return httpx.post(f"{url(one)}/v1/completions", json=body, timeout=30)


def state(one: Site) -> Any:
    return httpx.get(f"{url(one)}/palorad/state", headers=admin(one)).json()


def asleep(one: Site) -> bool:
    return bool(state(one)["asleep"])


def sleeping(one: Site) -> bool:
    """What the server behind the middleware says."""
    answer = httpx.get(f"{url(one)}/is_sleeping", headers=admin(one)).json()
    return bool(answer["is_sleeping"])


def put(one: Site, name: str, prompt: str) -> None:
    one.layout.inbox.mkdir(parents=True, exist_ok=True)
    (one.layout.inbox / name).write_text(json.dumps({"prompt": prompt, "answer": "1"}) + "\n")


def answers(one: Site, revision: int) -> None:
    """The server is awake, and its alias answers from what was verified since it slept."""
    one.until(lambda: complete(one).status_code == 200, "answering")
    assert complete(one).headers["x-palorad-revision"] == str(revision)
    seen = state(one)
    assert not seen["asleep"]
    assert seen["pointer"]["model"] in seen["verified"]
    assert not sleeping(one)


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_the_server_ends_awake_verified_and_answering(
    one: Site, point: str
) -> None:
    one.start()
    one.drop("0.jsonl", ["zero"])
    one.die_at(point)
    one.drop("1.jsonl", ["one"])
    assert one.died(point)
    answers(one, 2)
    assert one.stop() == 0
    expect(one, [("0.jsonl", 1, BatchState.LIVE), ("1.jsonl", 1, BatchState.LIVE)])


def test_the_points_are_passed_in_their_order(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    traced = Site(tmp_path / "site", {TRACE: str(trace)}, gpu_sharing="sleep")
    try:
        traced.start()
        traced.drop("0.jsonl", ["zero"])
        assert traced.stop() == 0
    finally:
        traced.close()
    names = [line.partition("#")[0] for line in trace.read_text().split()]
    assert [name for name in names if name in POINTS] == list(POINTS)
    assert names.index("sleep:awake") < names.index("evaluate:started")


def test_killed_while_requests_are_finished_the_server_goes_on(one: Site) -> None:
    """The sleep that still waited for them is called off: it does not come true later."""
    one.start()
    one.drop("0.jsonl", ["zero"])
    answered: list[int] = []
    slow = threading.Thread(
        target=lambda: answered.append(complete(one, "base", "slow").status_code)
    )
    slow.start()
    one.until(lambda: bool(state(one)["in_flight"]), "asking")
    put(one, "1.jsonl", "one")
    one.until(lambda: asleep(one), "falling asleep")
    assert not sleeping(one)
    one.alive().kill()
    one.alive().wait()
    slow.join()
    assert answered == [200]
    one.until(lambda: one._rests("1.jsonl"), "learning")
    answers(one, 2)


def test_killed_in_training_users_are_sent_away_until_the_daemon_is_back(one: Site) -> None:
    one.environment["PALORAD_TEST_STEP_S"] = "1.0"
    one.start()
    one.drop("0.jsonl", ["zero"])
    put(one, "1.jsonl", "one")
    one.until((one.layout.workdir(2, "train") / "counter").exists, "training")
    refused = complete(one)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert "sleeps while palorad trains" in refused.json()["error"]["message"]
    assert httpx.get(f"{url(one)}/palorad/ready").status_code == 503
    one.alive().kill()
    one.alive().wait()
    assert complete(one).status_code == 503
    one.until(lambda: one._rests("1.jsonl"), "learning")
    answers(one, 2)
    with one.reading() as ledger:
        assert ledger.plans.head(2).attempts == 0


def test_a_rollback_in_training_is_served_when_the_server_wakes(one: Site) -> None:
    one.start()
    one.drop("0.jsonl", ["zero"])
    one.drop("1.jsonl", ["one"])
    one.environment["PALORAD_TEST_STEP_S"] = "20"
    assert one.stop() == 0
    one.start()
    put(one, "2.jsonl", "two")
    one.until((one.layout.workdir(3, "train") / "counter").exists, "training")
    status = ask(one.layout.control_socket, "status")
    (replica,) = status["replicas"]
    assert not replica["ready"]
    assert "sleeps while palorad trains" in replica["reason"]
    ask(one.layout.control_socket, "pause", because="what comes next is not of interest")
    begun = time.monotonic()
    ask(one.layout.control_socket, "rollback", to=1, because="wrong")
    one.until(lambda: complete(one).headers.get("x-palorad-revision") == "1", "rolling back")
    assert time.monotonic() - begun < 10
    answers(one, 1)


def test_sigterm_in_training_leaves_the_server_awake_and_verified(one: Site) -> None:
    one.environment["PALORAD_TEST_STEP_S"] = "1.0"
    one.start()
    one.drop("0.jsonl", ["zero"])
    put(one, "1.jsonl", "one")
    one.until((one.layout.workdir(2, "train") / "counter").exists, "training")
    assert asleep(one)
    assert one.stop() == 0
    assert complete(one).headers["x-palorad-revision"] == "1"
    assert not sleeping(one)
    with one.reading() as ledger:
        assert ledger.plans.head(2).attempts == ledger.plans.head(2).interruptions == 0


def test_the_server_killed_in_its_sleep_sleeps_again_and_ends_verified(one: Site) -> None:
    one.start()
    one.drop("0.jsonl", ["zero"])
    assert one.stop() == 0
    one.environment["PALORAD_TEST_STEP_S"] = "4"
    one.start()
    put(one, "1.jsonl", "one")
    one.until((one.layout.workdir(2, "train") / "counter").exists, "training")
    one.restart_replica()
    one.until(lambda: asleep(one), "sleeping again")
    assert complete(one).status_code == 503
    one.until(lambda: one._rests("1.jsonl"), "learning")
    answers(one, 2)
