"""The service as a process: its loop, signals, lock, notifications, and what goes wrong."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from daemon.base.control import ask
from daemon.config.gate import SuiteSettings
from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.loop import systemd
from daemon.loop.preflight import prepare_state, require_files, require_own_modules
from daemon.loop.room import LOW_DISK_BYTES
from daemon.loop.service import Service
from daemon.serving.servers import Servers
from daemon.views.status import DaemonView
from policies.errors import ConfigError, ForeignModule, RequestRefused
from policies.records import BatchState
from tests.support.crashing import Site
from tests.support.standstill import others_s


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "site")
    yield made
    made.close()


def live(one: Site) -> DaemonView:
    return DaemonView.model_validate(ask(one.layout.control_socket, "status"))


def up(one: Site) -> None:
    one.start()
    one.until(one.layout.control_socket.exists, "starting")


# --- a running daemon ------------------------------------------------------------------------


def test_what_is_dropped_is_served_and_status_tells(one: Site) -> None:
    up(one)
    one.drop("a.jsonl", ["one", "two"])
    one.until(lambda: live(one).replicas[0].ready, "being ready")
    status = live(one)
    daemon = one.alive()
    asked = {path.name for path in one.layout.work.rglob("*")} & {"request.json", "facts.jsonl"}
    assert asked == {"request.json"}, "nobody reads the facts of what is done"
    assert status.pid == daemon.pid
    assert (status.blocked, status.trouble) == ("", ())
    (replica,) = status.replicas
    assert replica.active == replica.target
    assert replica.verified_at is not None
    with one.reading() as ledger:
        assert replica.target == ledger.revisions.target().served_name
    assert one.stop() == 0
    assert not one.layout.control_socket.exists()


def test_every_command_answers_in_one_line(one: Site) -> None:
    up(one)
    file = one.root / "facts.jsonl"
    file.write_text('{"prompt": "one", "answer": "1"}\n{"prompt": "two", "answer": "2"}\n')
    path = one.layout.control_socket
    submitted = ask(path, "submit", path=str(file))
    one.until(lambda: one._rests("facts.jsonl"), "learning")
    assert "already known" in ask(path, "submit", path=str(file))["line"]
    assert ask(path, "submit", path=str(file), again=False)["batch"] == submitted["batch"]
    assert "base" in ask(path, "rollback", because="wrong")["line"]
    assert ask(path, "forward")["revision"] == 1
    assert "nothing new" in ask(path, "pause")["line"]
    assert ask(path, "resume")["line"] == "going on"
    assert "2 facts in one adapter" in ask(path, "consolidate")["line"]
    one.until(lambda: one._rests("facts.jsonl"), "consolidating")
    answer = ask(path, "retract", fact="one", because="asked to")
    assert answer["still_served"]
    one.until(lambda: one._rests("facts.jsonl") and _target(one) == 3, "forgetting")
    refused = {
        ("rollback", ("to", 1)): "knows 1 retracted fact;",
        ("rollback", ("to", 9)): "no revision 9",
        ("promote", ("plan", 1)): "only inconclusive ones are decided",
        ("retry", ("subject", "facts.jsonl")): "nothing to retry",
        ("retry", ("subject", "nothing")): "no batch nothing",
        ("retract", ("fact", "three")): "no fact",
        ("submit", ("path", "/nowhere")): "/nowhere",
        ("forward", ("because", "")): "no later revision",
    }
    for (command, (key, value)), words in refused.items():
        with pytest.raises(RequestRefused, match=words) as raised:
            ask(path, command, **{key: value})
        assert "\n" not in str(raised.value)


def _target(one: Site) -> int:
    with one.reading() as ledger:
        return ledger.revisions.target().number


def test_a_second_daemon_names_the_first_and_leaves_it_alone(one: Site) -> None:
    up(one)
    first = one.alive()
    second = one.start()
    assert second.wait() == 1
    assert f"another palorad (pid {first.pid}) runs on this state directory" in one.log
    one.daemon = first
    assert live(one).pid == first.pid


def test_while_paused_nothing_is_begun(one: Site) -> None:
    up(one)
    ask(one.layout.control_socket, "pause", because="maintenance")
    (one.layout.inbox / "a.jsonl").write_text('{"prompt": "one", "answer": "1"}\n')
    one.until(lambda: not (one.layout.inbox / "a.jsonl").exists(), "taking it in")
    one.until(lambda: "palorad resume" in live(one).blocked, "being blocked")
    with one.reading() as ledger:
        assert ledger.plans.heads() == ()
    ask(one.layout.control_socket, "resume")
    one.until(lambda: one._rests("a.jsonl"), "learning")


def test_a_replica_that_comes_back_is_verified_again_before_it_answers(one: Site) -> None:
    up(one)
    one.drop("a.jsonl", ["one"])
    one.until(lambda: live(one).replicas[0].ready, "being ready")
    before = live(one).replicas[0].verified_at
    one.restart_replica()
    one.until(lambda: _verified_since(one, before), "being verified again")
    assert live(one).replicas[0].ready


def _verified_since(one: Site, before: datetime | None) -> bool:
    replica = live(one).replicas[0]
    assert before is not None
    return replica.ready and replica.verified_at is not None and replica.verified_at > before


def test_sighup_says_what_it_takes_over_and_what_not(one: Site) -> None:
    up(one)
    os.kill(one.alive().pid, signal.SIGHUP)
    one.until(lambda: "settings reloaded" in one.log, "reloading")
    told = next(json.loads(x) for x in one.log.splitlines() if "settings reloaded" in x)
    assert told["taken"] == ["train"]
    assert told["needs_restart"] == ["intake"]
    assert live(one).pid == one.alive().pid


def test_systemd_is_told(one: Site, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(os.fspath(tmp_path / "notify"))
        systemd.settimeout(20)
        one.environment |= {
            "NOTIFY_SOCKET": os.fspath(tmp_path / "notify"),
            "WATCHDOG_USEC": "200000",
        }
        up(one)
        told = [systemd.recv(100).decode() for _ in range(4)]
        assert told == ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"]
        one.alive().terminate()
        while told[-1] == "WATCHDOG=1":
            told.append(systemd.recv(100).decode())
        assert told[-1] == "STOPPING=1"
        assert one.alive().wait() == 0


def test_outside_systemd_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert not systemd.notify("READY=1")
    assert systemd.watchdog_interval_s() is None


# --- in this process -------------------------------------------------------------------------


def run_for(one: Site, service: Service, work: Any) -> None:
    """The service in this process's loop until `work()` is through."""

    async def main() -> None:
        running = asyncio.create_task(service.run())
        while not one.layout.control_socket.exists():  # noqa: ASYNC110 - a file sets no Event
            await asyncio.sleep(0.01)
        try:
            await work()
        finally:
            service.stop()
            await running

    asyncio.run(main())


def service_of(one: Site, ledger: Ledger, **changes: Any) -> Service:
    return Service(one.settings, ledger, Servers(one.settings), **changes)


def test_nothing_holds_the_loop_for_a_second(one: Site) -> None:
    lines = "".join(
        json.dumps({"prompt": f"question {n}?", "answer": f"{n}"}) + "\n" for n in range(20_000)
    )
    prepare_state(one.settings)
    (one.layout.inbox / "large.jsonl").write_text(lines)
    gaps: list[float] = []
    worked: list[float] = []

    with Ledger.open(one.layout.ledger) as ledger:
        service = service_of(one, ledger)
        ledger.revisions.ensure_base("base", datetime.now(UTC))
        ledger.meta.pause(True, "only intake is measured", datetime.now(UTC))

        async def beat() -> None:
            end = time.monotonic() + 60
            while not (ledger.batches.latest() and int(ledger.meta.get("indexed") or 0) >= 20_000):
                before, work = time.monotonic() - others_s(), time.thread_time()
                assert time.monotonic() < end, "the file is not taken in"
                await asyncio.sleep(0.01)
                gaps.append(time.monotonic() - others_s() - before)
                worked.append(time.thread_time() - work)

        # What other tests have left in this process is not the daemon's to look through.
        gc.collect()
        gc.freeze()
        try:
            run_for(one, service, beat)
        finally:
            gc.unfreeze()
        assert ledger.batches.totals()["accepted"] == 20_000
    assert max(worked) < 1.0
    assert max(gaps) < 1.0


def test_no_tick_waits_for_an_erasure_and_nothing_is_changed_beside_it(
    one: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewriting a large ledger takes minutes, in which nobody else may use it."""
    prepare_state(one.settings)
    begun: list[str] = []

    async def go() -> None:
        service = service_of(one, ledger)
        rewritten = asyncio.Event()

        async def slowly(*_: Any, **__: Any) -> None:
            begun.append("erasure")
            await rewritten.wait()

        def taken(*_: Any) -> bool:
            begun.append("intake")
            return False

        monkeypatch.setattr(service._forgetting, "step", slowly)
        monkeypatch.setattr(service._intake, "step", taken)
        service.look()
        for _ in range(4):
            began = time.monotonic()
            await service.tick()
            assert time.monotonic() - began < 1.0
        assert begun == ["intake", "erasure"]
        rewritten.set()
        await service.tick()
        await service.tick()
        assert begun == ["intake", "erasure"] * 2

    with Ledger.open(one.layout.ledger) as ledger:
        ledger.revisions.ensure_base("base", datetime.now(UTC))
        asyncio.run(asyncio.wait_for(go(), 20))


def test_a_full_disk_pauses_and_room_goes_on(one: Site) -> None:
    room = [LOW_DISK_BYTES - 1]
    prepare_state(one.settings)
    drop = one.layout.inbox / "a.jsonl"
    drop.write_text('{"prompt": "one", "answer": "1"}\n')
    with Ledger.open(one.layout.ledger) as ledger:
        service = service_of(one, ledger, free_bytes=lambda: room[0])

        async def work() -> None:
            end = time.monotonic() + 30
            while not service.live().trouble:  # noqa: ASYNC110 - asked, as status asks
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.1)
            (line,) = [t for t in service.live().trouble if "MB are free" in t]
            assert "intake and learning pause until there is room" in line
            assert drop.exists()
            room[0] = LOW_DISK_BYTES
            while drop.exists():
                assert time.monotonic() < end
                await asyncio.sleep(0.02)
            assert not [t for t in service.live().trouble if "MB are free" in t]

        run_for(one, service, work)
        assert ledger.batches.totals()["batches"] == 1


def test_a_tick_that_fails_ends_nothing_and_is_told(
    one: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_state(one.settings)
    with Ledger.open(one.layout.ledger) as ledger:
        service = service_of(one, ledger)
        broken = [True]

        async def tick(now: datetime) -> None:
            if broken[0]:
                raise KeyError("a bug")

        monkeypatch.setattr(service._reconciler, "tick", tick)

        async def work() -> None:
            end = time.monotonic() + 30
            while not any("unexpected KeyError" in t for t in service.live().trouble):
                assert time.monotonic() < end
                await asyncio.sleep(0.02)
            broken[0] = False
            while any("unexpected" in t for t in service.live().trouble):
                assert time.monotonic() < end
                await asyncio.sleep(0.02)

        run_for(one, service, work)


def test_an_event_wakes_it_long_before_the_scan(one: Site) -> None:
    intake = one.settings.intake.model_copy(update={"watch": "events", "rescan_s": 3600.0})
    settings = one.settings.model_copy(update={"intake": intake})
    prepare_state(settings)
    with Ledger.open(one.layout.ledger) as ledger:
        service = Service(settings, ledger, Servers(settings))
        drop = one.layout.inbox / "a.jsonl"

        async def work() -> None:
            end = time.monotonic() + 30
            await asyncio.sleep(3)
            drop.write_text('{"prompt": "one", "answer": "1"}\n')
            while not ledger.batches.latest():
                assert time.monotonic() < end
                await asyncio.sleep(0.02)

        run_for(one, service, work)
        state = ledger.batches.state(ledger.batches.latest()[0].id)
        assert state in (BatchState.WAITING, BatchState.LEARNING)


# --- what has to be there --------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "skill.jsonl").write_text("")
    return Settings.model_validate(
        {
            "state_dir": tmp_path / "s",
            "model": {"path": model},
            "probe": {"skill": tmp_path / "skill.jsonl"},
            "train": {"replay": {"known": "", "reasoning": ""}},
            "gate": {"suites": ()},
        }
    ).rooted(tmp_path)


def test_what_is_missing_is_named_with_its_key(settings: Settings) -> None:
    require_files(settings)
    settings.probe.skill.unlink()
    with pytest.raises(ConfigError, match=r"probe\.skill .*skill\.jsonl: there is no such file"):
        require_files(settings)
    (settings.model.path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"model\.path .*there is no model"):
        require_files(settings)


def test_a_quantised_model_is_refused_before_anything_starts(settings: Settings) -> None:
    config = {"quantization_config": {"quant_method": "awq", "bits": 4}}
    (settings.model.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"model\.path .* are quantised \(awq\)"):
        require_files(settings)


def test_the_path_beside_a_task_is_a_folder_and_that_of_a_suite_a_file(settings: Settings) -> None:
    def with_suite(**suite: object) -> Settings:
        chosen = SuiteSettings.model_validate({"name": "s", "role": "reasoning", **suite})
        gate = settings.gate.model_copy(update={"suites": (chosen,)})
        return settings.model_copy(update={"gate": gate})

    tasks, file = settings.state_dir.parent, settings.probe.skill
    require_files(with_suite(task="gsm8k", path=tasks))
    require_files(with_suite(path=file))
    with pytest.raises(ConfigError, match=r"gate\.suites\[0\]\.path .*no such folder of tasks"):
        require_files(with_suite(task="gsm8k", path=file))
    with pytest.raises(ConfigError, match=r"gate\.suites\[0\]\.path .*no such file"):
        require_files(with_suite(path=tasks))


def test_a_state_directory_that_cannot_be_made_says_so(settings: Settings) -> None:
    settings.state_dir.parent.joinpath("s").write_text("a file")
    with pytest.raises(ConfigError, match=r"^state_dir: .*cannot be made: "):
        prepare_state(settings)


def test_a_foreign_module_under_our_name_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    require_own_modules()
    monkeypatch.setattr("daemon.loop.preflight.PACKAGES", ("policies", "json"))
    with pytest.raises(ForeignModule, match=r"the module json is .*has taken the name"):
        require_own_modules()
