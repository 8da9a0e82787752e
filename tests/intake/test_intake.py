"""Drops become batches: every line is accounted for, whatever happens on the way."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.base import faults
from daemon.config.layout import Layout
from daemon.config.sections import IntakeSettings
from daemon.intake import admit
from daemon.intake.admit import AT_ONCE
from daemon.intake.intake import Intake
from daemon.intake.reader import Records
from daemon.intake.receipts import Receipt, read_receipt
from daemon.ledger.ledger import Ledger
from policies.errors import NotFound, RequestRefused
from policies.facts.jsonline import LineLimits
from policies.facts.splitting import ListSplitter
from tests.support import tiny

START = datetime(2026, 11, 1, tzinfo=UTC)
LONG = 60.0


class Place:
    """An intake over a directory, with a clock of its own."""

    def __init__(self, root: Path, **settings: object) -> None:
        self.layout = Layout(root)
        for folder in self.layout.directories():
            folder.mkdir(parents=True, exist_ok=True)
        self.settings = IntakeSettings.model_validate({"stable_s": 2, **settings})
        self.now = START
        self.ledger = Ledger.open(self.layout.ledger)
        self.intake = self.restart()

    def restart(self) -> Intake:
        self.intake = Intake(self.ledger, self.layout, self.settings, self.seconds)
        return self.intake

    def seconds(self) -> float:
        return (self.now - START).total_seconds()

    def drop(self, name: str, data: bytes) -> Path:
        path = self.layout.inbox / name
        path.write_bytes(data)
        return path

    def pass_over(self, seconds: float = 3.0, budget: float = LONG) -> list[Receipt]:
        """Look, wait, look again: whatever rests is taken."""
        got = self.intake.step(self.now, budget)
        self.now += timedelta(seconds=seconds)
        return got + self.intake.step(self.now, budget)

    def retry(
        self, batch: str, *, line: int | None = None, newest: bool = False
    ) -> tuple[int, int]:
        """How many lines are read again, and how many of them are bad still."""
        pieces = list(self.intake.retry(batch, self.now, line, newest))
        return sum(read for read, _ in pieces), sum(bad for _, bad in pieces)

    def left(self) -> set[str]:
        return {p.name for p in self.layout.inbox.iterdir()}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.ledger.close()


def lines(*numbers: int, **more: str) -> bytes:
    records = [{"prompt": f"What is {n}?", "answer": f"value {n}", **more} for n in numbers]
    return b"".join(json.dumps(r).encode() + b"\n" for r in records)


def test_a_drop_becomes_a_batch_with_a_receipt(place: Place) -> None:
    data = lines(1, 2) + b"not json\n\n" + lines(3, 1)
    drop = place.drop("facts.jsonl", data)
    (receipt,) = place.pass_over()
    assert (receipt.accepted, receipt.quarantined, receipt.duplicates) == (4, 1, 1)
    assert [b.line for b in receipt.bad_lines] == [3]
    assert place.left() == {"facts.jsonl.accepted.json"}
    assert read_receipt(drop) == receipt
    assert receipt.batch is not None
    assert place.layout.archived(receipt.batch).read_bytes() == data
    facts = place.ledger.facts.find(batch_id=receipt.batch)
    assert [f.answer for f in facts] == ["value 1", "value 2", "value 3"]
    assert all(f.eval_prompts and f.training_prompts for f in facts)
    assert place.pass_over() == []


def test_a_file_that_grows_is_left_until_it_rests(place: Place) -> None:
    drop = place.drop("grows.jsonl", lines(1))
    for number in range(2, 5):
        assert place.intake.step(place.now, LONG) == []
        place.now += timedelta(seconds=1.5)
        with drop.open("ab") as out:
            out.write(lines(number))
    assert place.pass_over()[0].accepted == 4


@pytest.mark.parametrize("name", [".hidden", "a.tmp", "a.jsonl.part", "a~", "a.accepted.json"])
def test_names_that_mark_unfinished_files_are_left(place: Place, name: str) -> None:
    place.drop(name, lines(1))
    assert place.pass_over() == []
    assert place.left() == {name}


def test_a_rename_into_the_inbox_is_taken(place: Place) -> None:
    place.drop("a.jsonl.tmp", lines(1)).rename(place.layout.inbox / "a.jsonl")
    assert place.pass_over()[0].accepted == 1


def test_only_bad_lines_give_a_rejected_receipt(place: Place) -> None:
    place.drop("bad.jsonl", b"x\ny\n")
    (receipt,) = place.pass_over()
    assert (receipt.accepted, receipt.quarantined) == (0, 2)
    assert place.left() == {"bad.jsonl.rejected.json"}


def test_the_list_of_bad_lines_is_bounded(place: Place) -> None:
    place.drop("bad.jsonl", b"x\n" * 2500 + lines(1))
    (receipt,) = place.pass_over()
    assert receipt.quarantined == 2500
    assert len(receipt.bad_lines) + receipt.bad_lines_left_out == 2500


def make_directory(path: Path) -> None:
    path.mkdir()


def make_link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one, contextlib.chdir(path.parent):
        one.bind(path.name)


def make_empty(path: Path) -> None:
    path.touch()


def make_large(path: Path) -> None:
    with path.open("wb") as out:
        out.truncate(2 << 20)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (make_directory, "is a directory"),
        (make_link, "symbolic link"),
        (make_pipe, "not a regular file"),
        (make_socket, "not a regular file"),
        (make_empty, "is empty"),
        (make_large, "at most 1 MiB"),
    ],
)
def test_what_cannot_be_read_gets_one_line_and_stays(
    tmp_path: Path, make: Callable[[Path], None], says: str
) -> None:
    place = Place(tmp_path, max_file_mb=1)
    path = place.layout.inbox / "odd"
    make(path)
    (receipt,) = place.pass_over()
    assert receipt.error is not None and says in receipt.error
    assert "\n" not in receipt.error
    assert place.left() == {"odd", "odd.rejected.json"}
    assert place.pass_over() == []
    place.restart()
    assert place.pass_over() == []
    place.ledger.close()


def test_a_refused_file_is_looked_at_again_when_it_changes(place: Place) -> None:
    drop = place.drop("late.jsonl", b"")
    assert place.pass_over()[0].error is not None
    drop.write_bytes(lines(1))
    assert place.pass_over()[0].accepted == 1
    assert place.left() == {"late.jsonl.accepted.json"}


def test_the_same_bytes_again_are_known(place: Place) -> None:
    place.drop("a.jsonl", lines(1))
    (first,) = place.pass_over()
    place.drop("b.jsonl", lines(1))
    (again,) = place.pass_over()
    assert again.already_known and again.batch == first.batch
    assert again.file == "b.jsonl"
    assert place.left() == {"a.jsonl.accepted.json", "b.jsonl.accepted.json"}
    assert len(place.ledger.batches.latest()) == 1


def test_submit_is_taken_without_waiting(place: Place, tmp_path: Path) -> None:
    outside = tmp_path / "mine.jsonl"
    outside.write_bytes(lines(1))
    batch, known = place.intake.submit(outside)
    assert not known
    (receipt,) = place.intake.step(place.now, LONG)
    assert receipt.batch == batch
    assert place.intake.submit(outside) == (batch, True)
    assert outside.exists()
    with pytest.raises(RequestRefused, match="does not exist"):
        place.intake.submit(tmp_path / "nothing")
    with pytest.raises(RequestRefused, match="is a directory"):
        place.intake.submit(tmp_path)


def test_a_later_answer_supersedes_and_a_retraction_retracts(place: Place) -> None:
    key = {"subject": "Bhutan", "relation": "capital", "prompt": "Capital of Bhutan?"}
    texts = [
        {**key, "answer": "Punakha", "valid_from": "1950-01-01"},
        {**key, "answer": "Thimphu", "valid_from": "1961-01-01"},
    ]
    place.drop("a.jsonl", "\n".join(map(json.dumps, texts)).encode())
    place.pass_over()
    assert [f.answer for f in place.ledger.facts.find(valid_at=place.now)] == ["Thimphu"]
    place.drop(
        "b.jsonl", json.dumps({**key, "answer": "Paro", "valid_from": "1900-01-01"}).encode()
    )
    place.pass_over()
    assert [f.answer for f in place.ledger.facts.find(valid_at=place.now)] == ["Thimphu"]
    gone = {"op": "retract", "subject": "Bhutan", "relation": "capital"}
    place.drop("c.jsonl", json.dumps(gone).encode() + b'\n{"op": "retract", "id": "nobody"}')
    (receipt,) = place.pass_over()
    assert (receipt.accepted, receipt.quarantined) == (1, 1)
    assert receipt.bad_lines[0].kind == "no-target"
    assert place.ledger.facts.find(valid_at=place.now) == ()


def test_an_id_can_be_corrected_and_come_back(place: Place) -> None:
    for number, answer in enumerate(["A", "B", "A"]):
        record = {"id": "x-1", "prompt": "What?", "answer": answer, "source": str(number)}
        place.drop(f"{number}.jsonl", json.dumps(record).encode())
        (receipt,) = place.pass_over()
        assert (receipt.accepted, receipt.duplicates) == (1, 0)
        assert [f.answer for f in place.ledger.facts.find(valid_at=place.now)] == [answer]


def test_a_list_is_read_like_lines(place: Place) -> None:
    records = [json.loads(line) for line in lines(1, 2, 3).splitlines()]
    place.drop("list.json", json.dumps(records, indent=1).encode())
    assert place.pass_over()[0].accepted == 3


@given(
    st.lists(st.dictionaries(st.text(), st.text() | st.lists(st.integers())), min_size=1),
    st.integers(1, 50),
    st.sampled_from([None, 1]),
)
@settings(max_examples=40, deadline=None)
def test_a_list_is_cut_into_its_items(
    records: list[dict[str, object]], block: int, indent: int | None
) -> None:
    data = json.dumps(records, indent=indent).encode()
    splitter = ListSplitter(10_000)
    found = [i for at in range(0, len(data), block) for i in splitter.feed(data[at : at + block])]
    found += splitter.finish()
    assert [json.loads(i.raw) for i in found] == records
    half = found[len(found) // 2]
    later = ListSplitter(10_000, half.end)
    rest = [*later.feed(data[half.end :]), *later.finish()]
    assert [json.loads(i.raw) for i in rest] == records[len(found) // 2 + 1 :]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("shared"))
    yield made
    made.ledger.close()


@given(data=st.binary(max_size=300) | st.text('[]{}",\n\\ a1', max_size=60).map(str.encode))
@settings(max_examples=40, deadline=None)
def test_no_bytes_are_lost(data: bytes, shared: Place) -> None:
    path = shared.layout.root / "data"
    path.write_bytes(data)
    limits = LineLimits(line_bytes=40)
    with path.open("rb") as source:
        whole = Records(source, limits).take(10_000, 1 << 20)
        number = position = 0
        pieces = []
        while taken := (records := Records(source, limits, number, position)).take(1, 1):
            pieces += taken
            number, position = records.number, records.position
        assert pieces == whole
        parsed = [records.parse(raw) for raw in whole]
    shared.drop("any", data)
    receipts = shared.pass_over()
    if data:
        (receipt,) = receipts
        assert receipt.accepted + receipt.quarantined == sum(p is not None for p in parsed)


class Ticking:
    """A clock that moves by a second whenever it is read."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1.0
        return self.seconds


def test_a_step_keeps_to_its_time_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admit, "PIECE_LINES", 20)
    place = Place(tmp_path, stable_s=0)
    place.drop("large.jsonl", lines(*range(70)))
    place.intake = Intake(place.ledger, place.layout, place.settings, Ticking())
    got: list[Receipt] = []
    steps = 0
    while not got:
        got = place.intake.step(place.now, 1.5)
        steps += 1
        assert steps < 50
    assert steps > 4
    assert got[0].accepted == 70
    place.ledger.close()


def test_what_is_too_long_for_the_model_is_quarantined(tmp_path: Path) -> None:
    place = Place(tmp_path / "state", max_tokens=64)
    place.intake = Intake(
        place.ledger,
        place.layout,
        place.settings,
        place.seconds,
        model_dir=tiny.build(tmp_path / "model"),
    )
    long = "word " * 60
    facts = [
        {"prompt": "Who leads Zed?", "answer": "Ada"},
        {"prompt": f"Who leads {long}?", "answer": "Bo"},
        {"prompt": "Who leads Yed?", "answer": "Cy", "paraphrases": [f"Tell me {long}"]},
        {"prompt": "Who leads Xed?", "answer": long},
        {"prompt": "Who led Wed?", "answer": "Di"},
    ]
    place.drop("a.jsonl", "".join(json.dumps(fact) + "\n" for fact in facts).encode())
    (receipt,) = place.pass_over()
    assert (receipt.accepted, receipt.quarantined) == (2, 3)
    (batch,) = place.ledger.batches.latest()
    bad = place.ledger.quarantine.lines(batch.id, 9)
    assert [q.line for q in bad] == [2, 3, 4]
    assert all(q.kind == "tokens" and "[intake] max_tokens" in q.reason for q in bad)


def test_one_bad_line_can_keep_the_whole_file_out(tmp_path: Path) -> None:
    place = Place(tmp_path, bad_lines="reject")
    drop = place.drop("a.jsonl", lines(1) + b"bad\n" + lines(2))
    (receipt,) = place.pass_over()
    assert receipt.error is not None and "1 of 3" in receipt.error
    assert [b.line for b in receipt.bad_lines] == [2]
    assert place.left() == {"a.jsonl", "a.jsonl.rejected.json"}
    assert place.ledger.batches.latest() == ()
    drop.write_bytes(lines(1, 2))
    assert place.pass_over()[0].accepted == 2
    assert place.left() == {"a.jsonl.accepted.json"}
    place.ledger.close()


@pytest.mark.parametrize("policy", ["newest", "reject", "ask"])
def test_a_conflict_is_decided_by_the_policy(tmp_path: Path, policy: str) -> None:
    place = Place(tmp_path, conflicts=policy)
    for name, answer in (("a", "Punakha"), ("b", "Thimphu")):
        place.drop(name, json.dumps({"prompt": "Capital of Bhutan?", "answer": answer}).encode())
        (receipt,) = place.pass_over()

    def valid() -> list[str]:
        return [f.answer for f in place.ledger.facts.find(valid_at=place.now)]

    if policy == "newest":
        assert valid() == ["Thimphu"]
    else:
        assert valid() == ["Punakha"]
        assert (receipt.accepted, receipt.quarantined, receipt.conflicts) == (0, 1, 1)
        assert receipt.bad_lines[0].kind == ("ask" if policy == "ask" else "conflict")
        assert receipt.batch is not None
        assert place.retry(receipt.batch) == (1, 1)
        assert valid() == ["Punakha"]
        assert place.retry(receipt.batch, newest=True) == (1, 0)
        assert valid() == ["Thimphu"]
        batch = place.ledger.batches.get(receipt.batch)
        assert (batch.accepted, batch.quarantined) == (1, 0)
        with pytest.raises(NotFound, match="no line in quarantine"):
            place.retry(receipt.batch)
    place.ledger.close()


def test_quarantined_lines_are_read_again_by_the_rules_of_now(tmp_path: Path) -> None:
    place = Place(tmp_path, max_line_kb=1)
    place.drop("a", lines(1) + lines(2, source="x" * 2000) + b"bad\n")
    (receipt,) = place.pass_over()
    assert receipt.batch is not None and receipt.quarantined == 2
    place.settings = place.settings.model_copy(update={"max_line_kb": 64})
    place.restart()
    assert place.retry(receipt.batch, line=2) == (1, 0)
    assert place.retry(receipt.batch) == (1, 1)
    batch = place.ledger.batches.get(receipt.batch)
    assert (batch.accepted, batch.quarantined) == (2, 1)
    told = read_receipt(place.layout.inbox / "a")
    assert told is not None and (told.accepted, told.quarantined) == (2, 1)
    place.ledger.close()


def test_quarantined_lines_are_read_again_a_few_at_a_time(tmp_path: Path) -> None:
    place = Place(tmp_path, max_line_kb=1)
    place.drop("a", lines(*range(2 * AT_ONCE + 50), source="x" * 2000))
    (receipt,) = place.pass_over()
    assert receipt.batch is not None and receipt.quarantined == 2 * AT_ONCE + 50
    place.settings = place.settings.model_copy(update={"max_line_kb": 64})
    place.restart()

    cut_off = place.intake.retry(receipt.batch, place.now)
    assert next(cut_off) == (AT_ONCE, 0)
    assert place.retry(receipt.batch, line=AT_ONCE + 1) == (1, 0)
    assert next(cut_off) == (AT_ONCE - 1, 0)
    cut_off.close()
    told = read_receipt(place.layout.inbox / "a")
    assert told is not None and (told.accepted, told.quarantined) == (2 * AT_ONCE, 50)

    assert place.retry(receipt.batch) == (50, 0)
    batch = place.ledger.batches.get(receipt.batch)
    assert (batch.accepted, batch.quarantined) == (2 * AT_ONCE + 50, 0)
    assert len(place.ledger.facts.find(valid_at=place.now)) == 2 * AT_ONCE + 50
    place.ledger.close()


def test_no_room_loses_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.drop("a.jsonl", lines(1))
    place.drop("b.jsonl", lines(2))

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert place.pass_over() == []
    assert len(place.intake.problems) == 2
    assert all("the disk is full" in line for line in place.intake.problems)
    assert {"a.jsonl", "b.jsonl"} <= place.left()
    assert len(place.pass_over(seconds=60)) == 2
    assert place.intake.problems == ()


def test_why_a_file_was_set_aside_leaves_the_status_with_the_file(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted, kept = place.drop("a.jsonl", lines(1)), place.drop("b.jsonl", lines(2))

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        place.pass_over()
        assert len(place.intake.problems) == 2
        deleted.unlink()
        place.pass_over(seconds=0.1)
        (problem,) = place.intake.problems
        assert kept.name in problem


def test_a_refused_name_is_forgotten_with_its_file(place: Place) -> None:
    drop = place.drop("late.jsonl", b"")
    assert place.pass_over()[0].error is not None
    drop.unlink()
    place.pass_over()
    assert place.intake._notes._refused == {}


def run_child(root: Path, environment: dict[str, str]) -> int:
    """Take what is in the inbox in a process of its own; its exit status, negative if killed."""
    child = os.fork()
    if child == 0:
        os.environ.update(environment)
        faults._passed.clear()
        try:
            Place(root).pass_over()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_anywhere_it_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admit, "PIECE_LINES", 20)
    data = lines(*range(30)) + b"bad\n" + lines(1)
    trace = tmp_path / "trace"

    def fresh(name: str) -> Path:
        root = tmp_path / name
        (root / "inbox").mkdir(parents=True)
        (root / "inbox" / "a.jsonl").write_bytes(data)
        return root

    assert run_child(fresh("whole"), {faults.TRACE: str(trace)}) == 0
    points = [p for p in trace.read_text().split() if not p.startswith("record")]
    assert len(points) > 10
    for number, name in enumerate(points):
        root = fresh(f"killed-{number}")
        assert run_child(root, {faults.VARIABLE: name}) == -signal.SIGKILL
        place = Place(root)
        place.pass_over()
        (batch,) = place.ledger.batches.latest()
        assert (batch.accepted, batch.quarantined) == (31, 1), name
        assert len(place.ledger.facts.find(batch_id=batch.id)) == 30, name
        receipt = read_receipt(place.layout.inbox / "a.jsonl")
        assert receipt is not None and not receipt.already_known, name
        assert place.left() == {"a.jsonl.accepted.json"}, name
        assert [p.name for p in place.layout.archive.iterdir()] == [f"{batch.id}.jsonl"], name
        place.ledger.close()
