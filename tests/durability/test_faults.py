"""Disks, clocks, children and servers that fail: a retry, or FAILED with a reason to act on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapters import checkpoint, store
from daemon.base.control import ask
from daemon.children.endings import no_room
from policies.errors import PaloradError
from policies.records import BatchState, PlanState
from tests.support import clocks, crash_tour, faulty, half_answers, hunger
from tests.support.crash_tour import Tour
from tests.support.crashing import Forked, Site, _listening
from tests.support.disk.disk import mounted
from tests.support.fake_steps import SLOWNESS
from tests.support.faulty import FAILING, Bench
from tests.support.life.site import Site as Life

pytestmark = [pytest.mark.durability, pytest.mark.timeout(240)]

SEED = 5
SAMPLE = 10
HUNGRY_BYTES = 32 << 20
BAD_S = 3.0  # how long a disk stays bad


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with faulty.bench_at(tmp_path / "site") as made:
        made.tour.play("learn")
        yield made


@pytest.fixture
def tour(tmp_path: Path) -> Iterator[Tour]:
    with crash_tour.quick_retries(), crash_tour.tour_at(tmp_path / "site") as made:
        made.play("learn")
        yield made


def cpu_s(site: Site) -> float:
    """Seconds that the daemon has computed so far."""
    fields = Path(f"/proc/{site.alive().pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def trouble(site: Site) -> str:
    """Everything that the status says is wrong."""
    try:
        return " | ".join(ask(site.layout.control_socket, "status")["trouble"])
    except PaloradError:
        return ""


def away(site: Site) -> str:
    """What the status says of replicas that do not answer as they should."""
    (replica,) = ask(site.layout.control_socket, "status")["replicas"]
    return "" if replica["ready"] else str(replica["reason"])


def error_of(site: Site, name: str) -> str:
    with site.reading() as ledger:
        (head, *_) = ledger.plans.heads(batch_id=ledger.batches.get(name).id)
        return f"{head.state.value}: {head.error or ''} {head.because}"


def test_a_sample_of_single_faults_of_the_disk_costs_nothing(tmp_path: Path) -> None:
    with faulty.bench_at(tmp_path / "census") as bench:
        classes = bench.classes()
    with faulty.bench_at(tmp_path / "site") as bench:
        bench.tour.play("learn")
        for one, number in faulty.drawn(classes, SAMPLE, SEED):
            bench.fails_once(one, number)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_stays_bad_neither_ends_nor_spins_the_daemon(
    bench: Bench, number: int, tmp_path: Path
) -> None:
    tour, site = bench.tour, bench.tour.site
    daemon, log = site.alive(), site.root / "daemon.log"
    tour.number += 1
    tour.put(f"true {tour.number}")
    bench.disk.fail(FAILING, ".*", number, times=1 << 40, sparing=os.getpid())
    began, lines, computed = time.monotonic(), len(log.read_text().splitlines()), cpu_s(site)
    site.until(lambda: bool(trouble(site)), "telling it")
    told = trouble(site)
    time.sleep(BAD_S)
    passed = time.monotonic() - began
    assert os.strerror(number) in told or "disk" in told
    assert site.alive() is daemon
    assert cpu_s(site) - computed < 0.8 * passed
    assert len(log.read_text().splitlines()) - lines < 100
    bench.disk.heal()
    tour.rest()
    tour.held()
    assert site.alive() is daemon
    site.until(lambda: not trouble(site), "being well again")


def test_a_disk_without_room_pauses_everything_and_room_goes_on(bench: Bench) -> None:
    tour, site = bench.tour, bench.tour.site
    bench.disk.ask("free", 0)
    site.until(lambda: "MB are free" in trouble(site), "telling it")
    bench.disk.ask("free", 1 << 20)
    tour.play("learn")
    tour.held()
    assert site.starts == 1


def test_training_without_room_waits_and_goes_on_when_there_is_some(bench: Bench) -> None:
    """As long as it takes: what fails for want of room uses up no attempt."""
    tour, site = bench.tour, bench.tour.site
    tour.number += 1
    bench.disk.fail(("write",), r"adapters/.*", errno.ENOSPC, times=5)
    name = tour.put(f"true {tour.number}")
    site.until(lambda: "waits for room" in trouble(site), "waiting")
    assert "goes on by itself" in trouble(site)
    bench.disk.heal()
    tour.rest()
    tour.held()
    assert tour.state_of(name) == BatchState.LIVE
    with site.reading() as ledger:
        assert {head.attempts for head in ledger.plans.heads()} == {0}


@pytest.mark.parametrize("library", ["checkpoint", "safetensors", "store"])
def test_whatever_writes_tells_a_full_disk(library: str, tmp_path: Path) -> None:
    """Torch and safetensors say it in their own ways; a child has to understand them all."""
    with mounted(tmp_path / "disk") as disk:
        staging = store.staging(disk.folder / "adapters", "plan-1")
        (staging / "weights").write_bytes(b"x")
        weights = {"a": torch.ones(1 << 20)}
        saved = checkpoint.Saved(5, weights, {}, {})
        disk.fail(("write",), ".*", errno.ENOSPC, times=1 << 40)
        with pytest.raises(Exception) as caught:
            match library:
                case "checkpoint":
                    checkpoint.save(disk.folder / "checkpoint", "run", saved)
                case "safetensors":
                    save_file(weights, disk.folder / "adapters" / "adapter.safetensors")
                case "store":
                    store.publish(staging, disk.folder / "adapters", {})
        assert no_room(caught.value)


def test_a_disk_that_cannot_keep_the_adapter_fails_the_plan_with_its_reason(bench: Bench) -> None:
    tour, site = bench.tour, bench.tour.site
    tour.number += 1
    bench.disk.fail(("write",), r"adapters/.*", errno.EIO, times=1 << 40)
    name = tour.put(f"true {tour.number}")
    tour.wait_for(name, BatchState.FAILED)
    assert "failed: " in (told := error_of(site, name))
    assert os.strerror(errno.EIO) in told
    assert "failed 3 times" in told
    bench.disk.heal()
    with site.reading() as ledger:
        plan = ledger.plans.heads()[0].id
    tour.tell("retry", subject=str(plan), because="another disk")
    tour.wait_for(name, BatchState.LIVE)
    tour.rest()
    tour.held()


def test_a_receipt_that_could_not_be_brought_up_to_date_is_later(bench: Bench) -> None:
    tour, site = bench.tour, bench.tour.site
    tour.slow(0.5)
    tour.number += 1
    name = tour.put(f"true {tour.number}")
    receipt = site.layout.inbox / f"{name}.accepted.json"
    site.until(lambda: _works(site, "train") and receipt.exists(), "training")
    bench.disk.fail(("create",), r"inbox/.*", errno.ENOSPC, times=1 << 40, sparing=os.getpid())
    tour.wait_for(name, BatchState.LIVE)
    assert json.loads(receipt.read_text())["state"] != BatchState.LIVE
    bench.disk.heal()
    site.until(lambda: json.loads(receipt.read_text())["state"] == BatchState.LIVE, "saying it")
    tour.rest()
    tour.held()
    assert site.starts == 1


def test_a_file_without_rights_is_refused_by_name_and_taken_with_them(bench: Bench) -> None:
    tour, site = bench.tour, bench.tour.site
    tour.number += 1
    bench.disk.fail(("open",), r"inbox/[0-9]+\.jsonl", errno.EACCES, 1 << 40, os.getpid())
    name = tour.put(f"true {tour.number}")
    refusal = site.layout.inbox / f"{name}.rejected.json"
    site.until(refusal.exists, "refusing it")
    assert "may not be read by palorad" in refusal.read_text()
    bench.disk.heal()
    (site.layout.inbox / name).chmod(0o644)
    tour.rest()
    tour.held()


def test_an_inbox_that_is_gone_is_told_and_taken_from_when_it_is_back(tour: Tour) -> None:
    site = tour.site
    away = site.root / "away"
    site.layout.inbox.rename(away)
    site.until(lambda: str(site.layout.inbox) in trouble(site), "telling it")
    away.rename(site.layout.inbox)
    tour.play("learn")
    tour.held()
    assert site.starts == 1


STEPS = (timedelta(days=366), timedelta(days=-1), timedelta(0))
STATES: dict[str, Callable[[Site], bool]] = {
    "waiting": lambda site: True,
    "training": lambda site: _works(site, "train"),
    "judging": lambda site: _works(site, "evaluate"),
}


def _works(site: Site, step: str) -> bool:
    with site.reading() as ledger:
        return any(lease.step == step for lease in ledger.steps.leases())


@pytest.mark.parametrize("state", STATES)
def test_a_clock_that_jumps_in_any_state_holds_up_nothing(state: str, tmp_path: Path) -> None:
    """A year forward, a day back, right again: each while a batch is in this state."""
    clock = tmp_path / "clock"
    environment = {clocks.VARIABLE: str(clock), SLOWNESS: "0.3"}
    with crash_tour.tour_at(tmp_path / "site", **environment) as tour:
        tour.play("learn")
        for wrong_by in STEPS:
            tour.number += 1
            name = tour.put(f"true {tour.number}")
            tour.site.until(lambda: STATES[state](tour.site), state)
            clocks.put(clock, wrong_by)
            tour.rest()
            assert tour.state_of(name) == BatchState.LIVE
        tour.held()
        assert tour.site.starts == 1
        with tour.site.reading() as ledger:
            assert {head.attempts for head in ledger.plans.heads()} == {0}


def test_a_child_killed_as_for_want_of_memory_is_tried_again_and_says_so(tmp_path: Path) -> None:
    with crash_tour.tour_at(tmp_path / "site", **{SLOWNESS: "0.5"}) as tour:
        site = tour.site
        tour.number += 1
        name = tour.put("true 1")
        site.until(lambda: _works(site, "train"), "training")
        with site.reading() as ledger:
            (lease,) = ledger.steps.leases()
        os.kill(lease.pid, signal.SIGKILL)
        tour.rest()
        assert tour.state_of(name) == BatchState.LIVE
        with site.reading() as ledger:
            told = [e.payload for e in ledger.events.latest() if e.kind == "stage.failed"]
        assert len(told) == 1
        assert "was ended by SIGKILL" in told[0]["error"]
        assert "memory" in told[0]["error"]
        tour.held()


def test_a_child_that_the_kernel_ends_for_want_of_memory_is_tried_again(tmp_path: Path) -> None:
    with (
        hunger.limited(HUNGRY_BYTES) as group,
        crash_tour.tour_at(tmp_path / "site", **{hunger.GROUP: str(group)}) as tour,
    ):
        tour.number += 1
        name = tour.put("hungry 1")
        tour.rest()
        assert tour.state_of(name) == BatchState.LIVE
        with tour.site.reading() as ledger:
            told = [e.payload for e in ledger.events.latest() if e.kind == "stage.failed"]
        assert len(told) == 1
        assert "when the kernel ran out of memory: give the machine" in told[0]["error"]
        tour.held()


def test_a_run_that_diverges_fails_with_its_reason_and_stops_nobody(tour: Tour) -> None:
    tour.play("diverges")
    name = f"{tour.number}.jsonl"
    assert "failed 3 times" in (told := error_of(tour.site, name))
    assert "NaN or infinite" in told
    assert "failed: " in told
    tour.play("learn")
    tour.held()
    with tour.site.reading() as ledger:
        assert ledger.plans.heads((PlanState.FAILED,))


def test_half_answers_of_the_server_are_asked_for_again(tmp_path: Path) -> None:
    """Every answer breaks off in the middle for a while, whatever it was about."""
    root, broken = tmp_path / "site", tmp_path / "broken"
    site = Site(root)
    listening = _listening()
    port = site.replica_socket.getsockname()[1]
    listening.listen()
    proxy = Forked(lambda: half_answers.serve(listening, port, broken) or 0, {}, root / "p")
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = site.settings.server.model_copy(update={"urls": (url,)})
    site.settings = site.settings.model_copy(update={"server": server})
    try:
        site.start()
        tour = Tour(site)
        tour.play("learn")
        for _ in range(3):
            tour.number += 1
            broken.touch()
            name = tour.put(f"true {tour.number}")
            site.until(lambda: url in away(site), "telling it")
            time.sleep(0.5)
            broken.unlink()
            tour.rest()
            assert tour.state_of(name) == BatchState.LIVE
        tour.held()
        assert site.starts == 1
    finally:
        proxy.kill()
        proxy.wait()
        listening.close()
        site.close()


def test_a_replica_that_cannot_be_asked_is_waited_for_although_the_files_are_gone(
    tmp_path: Path,
) -> None:
    """What it has loaded knows the fact still, and it may be reached again."""
    site = Life(tmp_path)
    try:
        (site.layout.inbox / "a.jsonl").write_text('{"prompt": "one?", "answer": "1"}\n')
        site.settle()
        first = site.ledger.revisions.target()
        assert first.number == 1
        site.command("rollback", to=0, because="wrong")
        site.engines[1].cut_off = True
        site.engines[0].kill()
        site.engines[0].start()
        for path in (site.layout.served, site.layout.adapters):
            for directory in path.iterdir():
                shutil.rmtree(directory)
        site.command("retract", fact="one?", because="asked to")
        for _ in range(20):
            site.tick(61.0)
        assert first.served_name in site.engines[1].weights
        assert not list(site.layout.certificates.glob("*.json"))
        site.settle()
        assert first.served_name not in site.engines[1].weights
        assert len(list(site.layout.certificates.glob("*.json"))) == 1
    finally:
        site.close()
