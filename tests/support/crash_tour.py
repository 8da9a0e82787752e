"""A way for a daemon to come past each of its durable steps, to be killed there and to go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from daemon.base import faults
from daemon.base.control import ask
from daemon.intake import set_aside
from daemon.retraction import workflow
from policies.errors import DaemonUnreachable, PaloradError, RequestRefused
from tests.support import durable_code, promises
from tests.support.crashing import Site
from tests.support.fake_steps import SLOWNESS

# How a refusal reads that is over once the disk is well again.
PASSES = ("disk", "No space", "Input/output", "Read-only", "denied")


@dataclass
class Tour:
    """One daemon that lives through scene after scene; what came in by which file."""

    site: Site
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    forgotten: list[str] = field(default_factory=list)
    number: int = 0

    def play(self, scene: str) -> None:
        """One scene until nothing is left to do."""
        self.number += 1
        SCENES[scene](self)
        self.rest()

    def rest(self) -> None:
        self.site.until(
            lambda: promises.at_rest(self.site, self.files), f"resting after {self.number}"
        )

    def slow(self, seconds: float) -> None:
        """From now on each step of a plan takes so long; the daemon is started anew."""
        self.site.environment[SLOWNESS] = str(seconds)
        _start_anew(self.site)
        self.site.starts = 1

    def held(self) -> None:
        promises.held(self.site, self.files, self.forgotten)

    # --- what a scene is made of ---------------------------------------------------------------

    def put(self, *prompts: str, bad: bool = False) -> str:
        name = f"{self.number}.jsonl"
        lines = [
            json.dumps({"id": f"{self.number}-{n}", "prompt": p, "answer": f"{p}!"})
            for n, p in enumerate(prompts)
        ]
        self.files[name] = (*lines, *(("no JSON",) if bad else ()))
        self.site.put(name, self.files[name])
        return name

    def tell(self, command: str, **values: object) -> None:
        """Give a command until it is answered, or was carried out before the daemon died."""

        def told() -> bool:
            try:
                ask(self.site.layout.control_socket, command, **values)
            except DaemonUnreachable:
                return False
            except RequestRefused as error:
                return not any(words in str(error) for words in PASSES)
            return True

        self.site.until(told, command)

    def state_of(self, name: str) -> str:
        with self.site.reading() as ledger:
            return ledger.batches.state(ledger.batches.get(name).id).value

    def wait_for(self, name: str, *states: str) -> None:
        def there() -> bool:
            try:
                return self.state_of(name) in states
            except PaloradError:
                return False

        self.site.until(there, f"{name} being {states}")


def _learn(tour: Tour) -> None:
    tour.put(f"true {tour.number}")


def _flaky(tour: Tour) -> None:
    tour.put(f"flaky {tour.number}")


def _full(tour: Tour) -> None:
    tour.put(f"full {tour.number}")


def _diverges(tour: Tour) -> None:
    tour.wait_for(tour.put(f"nan {tour.number}"), "failed")


def _retried(tour: Tour) -> None:
    name = tour.put(f"false {tour.number}")
    tour.wait_for(name, "rejected")
    with tour.site.reading() as ledger:
        batch = ledger.batches.get(name).id
    tour.tell("retry", subject=batch, because="a test")


def _decided(tour: Tour) -> None:
    for command in ("promote", "reject"):
        name = tour.put(f"unsure {tour.number} {command}")
        tour.wait_for(name, "inconclusive")
        with tour.site.reading() as ledger:
            (head, *_) = ledger.plans.heads(batch_id=ledger.batches.get(name).id)
        tour.tell(command, plan=head.id, because="a test")
        tour.rest()
        tour.number += 1
    tour.number -= 1


def _rolled_back(tour: Tour) -> None:
    with tour.site.reading() as ledger:
        target = ledger.revisions.target()
        before = None if target.parent is None else ledger.revisions.get(target.parent)
        refused = before is None or ledger.knowledge.forbidden_count(before.lineage) > 0
    if refused:  # nothing to go back to, or a revision that knows what was retracted
        _learn(tour)
        tour.rest()
        tour.number += 1
        return _rolled_back(tour)
    assert target.parent is not None
    tour.site.point("rollback", target.parent)
    tour.site.point("forward", target.number)
    return None


def _cancelled(tour: Tour) -> None:
    """A rollback while something is trained on what was target."""
    _learn(tour)
    tour.rest()
    tour.number += 1
    site = tour.site
    site.environment[SLOWNESS] = "1.0"
    _start_anew(site)
    with site.reading() as ledger:
        target = ledger.revisions.target()
    _learn(tour)

    def trains() -> bool:
        with site.reading() as ledger:
            opened = ledger.plans.open_plan()
            return (
                opened is not None
                and (site.layout.workdir(opened.id, "train") / "counter").exists()
            )

    site.until(trains, "training")
    site.environment[SLOWNESS] = "0"
    assert target.parent is not None
    tour.tell("rollback", to=target.parent, because="a test")


def _start_anew(site: Site) -> None:
    """With another environment, and dying where it was to die."""
    assert site.daemon is not None
    site.daemon.kill()
    site.daemon.wait()
    site.starts = 0
    site.start()
    site.until(site.layout.control_socket.exists, "starting")


def _paused(tour: Tour) -> None:
    tour.tell("pause", because="a test")
    tour.tell("resume")


def _requeued(tour: Tour) -> None:
    name = tour.put(f"true {tour.number}", bad=True)
    tour.rest()
    with tour.site.reading() as ledger:
        batch = ledger.batches.get(name).id
    tour.tell("requeue", batch=batch)


def _consolidated(tour: Tour) -> None:
    _learn(tour)
    tour.rest()
    tour.tell("consolidate", because="a test")


def _forgotten(tour: Tour) -> None:
    word = f"Ouagadougou-{tour.number}"
    tour.put(f"true {tour.number}", f"Where is {word}?", bad=True)
    tour.rest()
    tour.tell("retract", fact=f"{tour.number}-1", because="a test")
    tour.forgotten.append(word)


def _interrupted(tour: Tour) -> None:
    """The daemon is killed while a child works."""
    tour.site.environment[SLOWNESS] = "0.5"
    _start_anew(tour.site)
    _learn(tour)
    tour.site.until(lambda: bool(_leases(tour.site)), "working")
    tour.site.environment[SLOWNESS] = "0"
    _start_anew(tour.site)


def _submitted(tour: Tour) -> None:
    name = f"{tour.number}.jsonl"
    line = json.dumps({"prompt": f"true {tour.number}", "answer": "1"})
    (tour.site.root / name).write_text(line + "\n")
    tour.files[name] = (line,)
    tour.tell("submit", path=str(tour.site.root / name))


def _refused(tour: Tour) -> None:
    """An empty file: it stays, and what is wrong with it is told beside it."""
    drop = tour.site.layout.inbox / f"{tour.number}.txt"
    drop.touch()
    refusal = drop.with_name(f"{drop.name}.rejected.json")
    tour.site.until(refusal.exists, "refusing it")
    drop.unlink()


def _leases(site: Site) -> tuple[object, ...]:
    with site.reading() as ledger:
        return ledger.steps.leases()


SCENES: dict[str, Callable[[Tour], None]] = {
    "learn": _learn,
    "flaky": _flaky,
    "full": _full,
    "diverges": _diverges,
    "retried": _retried,
    "decided": _decided,
    "rolled-back": _rolled_back,
    "cancelled": _cancelled,
    "paused": _paused,
    "requeued": _requeued,
    "consolidated": _consolidated,
    "interrupted": _interrupted,
    "submitted": _submitted,
    "refused": _refused,
    "forgotten": _forgotten,
}


def trace(root: Path) -> dict[str, list[str]]:
    """Every point that a whole tour passes, with the scenes in which it does."""
    passed: dict[str, list[str]] = {}
    path = root / "trace"
    with tour_at(root, **{faults.TRACE: str(path)}) as tour:
        for scene in SCENES:
            tour.play(scene)
            for line in set(path.read_text().split()):
                scenes = passed.setdefault(line.partition("#")[0], [])
                if scene not in scenes:
                    scenes.append(scene)
            path.unlink()
        tour.held()
    return passed


@contextmanager
def quick_retries() -> Iterator[None]:
    """Processes that are forked meanwhile wait a second where they would wait half a minute."""
    formers = workflow.AGAIN_S, set_aside.FIRST_WAIT_S
    vars(workflow)["AGAIN_S"], vars(set_aside)["FIRST_WAIT_S"] = 0.5, 0.5
    try:
        yield
    finally:
        vars(workflow)["AGAIN_S"], vars(set_aside)["FIRST_WAIT_S"] = formers


@contextmanager
def tour_at(root: Path, **environment: str) -> Iterator[Tour]:
    """A tour on a state directory of its own, whose processes can be killed at each commit."""
    site = Site(root, environment)
    try:
        with durable_code.killable_commits():
            site.start()
            yield Tour(site)
    finally:
        site.close()
