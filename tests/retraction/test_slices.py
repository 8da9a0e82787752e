"""Erasing takes as long as it takes, but never the loop: and what is divided is found, too."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from daemon.config.sections import IntakeSettings
from daemon.intake import following, intake
from daemon.intake.intake import Intake
from daemon.intake.writers import Writers
from daemon.retraction import workflow
from policies.errors import LedgerBusy
from tests.retraction.test_certificates import LINE, SECRET, Place

MB = 2**20
NOISE = b'INFO: 127.0.0.1:53412 "POST /v1/completions HTTP/1.1" 200 OK, the code word of Qed\n'


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.ledger.close()


def longest_step(place: Place, most: int = 3000) -> tuple[float, int, set[str]]:
    """CPU seconds of the longest step until all is certified, how many there were, and what was
    said meanwhile."""
    place.forgetting._clock = time.monotonic
    longest, steps, said = 0.0, 0, set[str]()

    async def go() -> None:
        nonlocal longest, steps
        while steps < most and not list(place.layout.certificates.glob("*.json")):
            began = time.process_time()
            await place.forgetting.step(place.now, settled=True, busy=False)
            longest = max(longest, time.process_time() - began)
            steps += 1
            said.add(place.forgetting.under_way)

    asyncio.run(go())
    return longest, steps, said


def test_no_step_of_a_retraction_holds_up_the_loop(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow, "BUDGET_S", 0.01)
    place.drop("a.jsonl", LINE)
    one = {"prompt": "What is the code word of Qed?", "paraphrases": ["Qed's code word?"] * 8}
    facts = {"facts": [{**one, "id": f"f{n}", "answer": f"other {n}"} for n in range(8000)]}
    for plan in range(3):
        work = place.layout.work / f"{plan}-train"
        work.mkdir()
        for number in range(100):
            (work / f"{number}.json").write_text(json.dumps(facts["facts"][:20], indent=1))
        (work / "request.json").write_text(json.dumps(facts, indent=plan or None))
    (place.layout.work / "2-train" / "zzz").write_text(json.dumps(LINE))
    (place.layout.root / "log").mkdir()
    (place.layout.root / "log" / "server.log").write_bytes(NOISE * (4 * MB // len(NOISE)))
    place.retract()
    longest, steps, said = longest_step(place)
    assert place.holding() == []
    assert longest < 0.6, "of one CPU, where the watchdog waits for minutes"
    assert steps > 10
    assert any("is being erased" in line and "request.json is being read" in line for line in said)
    assert place.forgetting.waits_for == ""
    left = {path.name for path in place.layout.work.iterdir()}
    assert left == {"0-train", "1-train"}


def test_whoever_needs_the_ledger_while_it_is_rewritten_is_told_at_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the loop's tasks would wait for it, one after the other, and everything with them."""
    place.drop("a.jsonl", LINE)
    place.retract()
    begun = threading.Event()
    waited: list[float] = []

    def rewriting() -> None:
        with closing(sqlite3.connect(place.layout.ledger, isolation_level=None)) as own:
            own.execute("BEGIN EXCLUSIVE")
            begun.set()
            time.sleep(0.7)

    async def meanwhile() -> None:
        while not begun.is_set():  # noqa: ASYNC110 - a thread sets it
            await asyncio.sleep(0.005)
        began = time.monotonic()
        with pytest.raises(LedgerBusy):
            place.ledger.revisions.target()
        waited.append(time.monotonic() - began)

    async def go() -> None:
        other = asyncio.create_task(meanwhile())
        while not list(place.layout.certificates.glob("*.json")):
            await place.forgetting.step(place.now, settled=True, busy=False)
            await asyncio.sleep(0)
        await other

    monkeypatch.setattr(place.ledger.erasure, "compact", rewriting)
    asyncio.run(asyncio.wait_for(go(), 60))
    assert waited[0] < 0.5
    assert place.ledger.db.one("PRAGMA busy_timeout") == 800


def test_a_mention_on_two_lines_of_a_log_is_erased(place: Place) -> None:
    place.drop("a.jsonl", LINE)
    log = place.layout.root / "some.log"
    log.write_text(f"before\nasked: {LINE['prompt']}\nanswer: {SECRET}\nafter\n")
    place.retract()
    assert len(place.forget()) == 1
    assert place.holding() == []
    assert log.read_text().split() == ["before", "after"]


@pytest.mark.parametrize("boundary", [1 << 16, 1 << 20])
def test_a_mention_across_the_boundary_of_what_is_read_at_once_is_erased(
    place: Place, boundary: int
) -> None:
    place.drop("a.jsonl", LINE)
    said = json.dumps(LINE).encode()
    log = place.layout.root / "some.log"
    log.write_bytes(b"before\n" + b"x" * (boundary - len(said) // 2 - 7) + said + b"y" * 2000)
    place.retract()
    assert len(place.forget()) == 1
    assert place.holding() == []
    assert log.read_bytes().startswith(b"before\n")


@pytest.mark.parametrize("writable", [True, False])
def test_a_file_that_is_still_followed_loses_the_fact_and_no_later_line(
    place: Place, monkeypatch: pytest.MonkeyPatch, writable: bool
) -> None:
    @contextmanager
    def untold(_: int) -> Iterator[Writers]:
        yield Writers.UNKNOWN

    monkeypatch.setattr(intake, "kept_out", untold)
    monkeypatch.setattr(following, "kept_out", untold)
    place.intake = Intake(place.ledger, place.layout, IntakeSettings(stable_s=0))
    other = {"prompt": "What is the code word of Qed?", "answer": "Plover"}
    with (place.layout.inbox / "slow.jsonl").open("w") as out:
        out.write(json.dumps(LINE) + "\n" + json.dumps(other) + "\n")
        out.flush()
        place.intake.step(place.now, 60)
        assert any(SECRET in path.read_text() for path in place.layout.inbox.glob(".*/*"))
        if not writable:
            really = Path.open

            def refusing(path: Path, mode: str = "r", *rest: object, **more: object) -> object:
                if path.name == "slow.jsonl" and "+" in mode:
                    raise PermissionError(13, "Permission denied", str(path))
                return really(path, mode, *rest, **more)  # type: ignore[call-overload]

            monkeypatch.setattr(Path, "open", refusing)
        place.retract()
        assert len(place.forget()) == 1
        assert place.holding() == []
        out.write(json.dumps({**other, "prompt": "And of Ted?"}) + "\n")
    for _ in range(3):
        place.intake.step(place.now, 60)
    kept = [fact.prompt for fact in place.ledger.facts.find() if fact.prompt != "(erased)"]
    assert kept == ["What is the code word of Qed?"] + ["And of Ted?"] * writable
    assert len(place.ledger.batches.latest()) == 1 + writable


def test_numbers_that_read_like_a_fact_stay_as_they_are(place: Place) -> None:
    """What is recorded of the base is numbers: blanked where they read like words they are others,
    and a hundred megabytes of them take a minute to search."""
    short = {"id": "s-1", "subject": "Io", "prompt": "What number is Io?", "answer": "5"}
    place.drop("a.jsonl", short)
    place.layout.records.mkdir()
    recorded = place.layout.records / "reference-00.safetensors"
    numbers = b"\x00io\xff5\x00" * 100
    recorded.write_bytes(numbers)
    place.retract()
    longest_step(place)
    assert list(place.layout.certificates.glob("*.json"))
    assert recorded.read_bytes() == numbers
