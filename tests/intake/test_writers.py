"""Writers that are slow, or do something while palorad reads, lose no line."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

import pytest

from daemon.config.layout import Layout
from daemon.intake import following, intake
from daemon.intake.receipts import read_receipt
from daemon.intake.writers import Writers, kept_out
from daemon.loop.instance import alone
from policies.errors import AlreadyRunning
from tests.intake.test_intake import Place, lines


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.ledger.close()


@pytest.fixture
def unknown_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel grants no lease, as on another user's file or a network share."""

    @contextmanager
    def untold(_: int) -> Iterator[Writers]:
        yield Writers.UNKNOWN

    monkeypatch.setattr(intake, "kept_out", untold)
    monkeypatch.setattr(following, "kept_out", untold)


def answers(place: Place) -> list[str]:
    return [fact.answer for fact in place.ledger.facts.find()]


def begun(place: Place, name: str, data: bytes) -> BinaryIO:
    """A writer that has written and flushed so much and keeps the file open."""
    out = (place.layout.inbox / name).open("wb")
    write(out, data)
    return out


def write(out: BinaryIO, data: bytes) -> None:
    out.write(data)
    out.flush()


def after(place: Place, seconds: float) -> None:
    place.now += timedelta(seconds=seconds)
    place.pass_over()


def quarantined(place: Place) -> list[tuple[int, str]]:
    return [
        (bad.line, bad.text)
        for batch in reversed(place.ledger.batches.latest())
        for bad in place.ledger.quarantine.lines(batch.id)
    ]


def test_the_kernel_tells_whether_a_file_is_open_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as out, path.open("rb") as source:
        with kept_out(source.fileno()) as writers:
            assert writers is Writers.OPEN
        out.close()
        with kept_out(source.fileno()) as writers:
            assert writers is Writers.NONE


def test_a_writer_that_pauses_with_its_file_open_loses_no_line(place: Place) -> None:
    with begun(place, "slow.jsonl", lines(1, 2)) as out:
        after(place, 10)
        write(out, lines(3))
        after(place, 10)
        assert any("still has it open" in problem for problem in place.intake.problems)
    after(place, 10)
    assert answers(place) == ["value 1", "value 2", "value 3"]
    assert place.left() == {"slow.jsonl.accepted.json"}
    assert place.intake.problems == ()


@pytest.mark.usefixtures("unknown_writers")
def test_lines_that_come_after_a_file_was_read_become_a_batch_of_their_own(place: Place) -> None:
    with begun(place, "slow.jsonl", lines(1, 2) + b"bad\n") as out:
        after(place, 10)
        assert answers(place) == ["value 1", "value 2"]
        write(out, lines(3) + b"worse\n")
        after(place, 10)
        assert answers(place) == ["value 1", "value 2", "value 3"]
        write(out, lines(4))
    after(place, 10)
    assert answers(place) == ["value 1", "value 2", "value 3", "value 4"]
    assert quarantined(place) == [(3, "bad"), (2, "worse")]
    kinds = {name for name in place.left() if not name.startswith(".")}
    assert kinds == {f"slow.jsonl{n}.accepted.json" for n in ("", "+1", "+2")}
    after(place, place.settings.late_lines_s)
    assert not [name for name in place.left() if name.startswith(".")]


@pytest.mark.usefixtures("unknown_writers")
@pytest.mark.parametrize("restart", [False, True])
def test_a_line_that_was_cut_off_by_a_pause_is_read_whole_and_once(
    place: Place, restart: bool
) -> None:
    second = lines(2)
    with begun(place, "slow.jsonl", lines(1) + second[:15]) as out:
        after(place, 10)
        assert quarantined(place) == [(2, second[:15].decode())]
        if restart:
            place.restart()
        write(out, second[15:] + lines(3))
    after(place, 10)
    assert answers(place) == ["value 1", "value 2", "value 3"]
    assert quarantined(place) == []
    assert sum(batch.quarantined for batch in place.ledger.batches.latest()) == 0


@pytest.mark.usefixtures("unknown_writers")
def test_a_list_that_was_cut_off_by_a_pause_is_read_again_whole(place: Place) -> None:
    items = [{"prompt": f"What is {n}?", "answer": f"value {n}"} for n in range(4)]
    items[0] = {"prompt": "no answer"}
    data = json.dumps(items).encode()
    with begun(place, "list.json", data[:90]) as out:
        after(place, 10)
        write(out, data[90:])
    after(place, 10)
    assert answers(place) == ["value 1", "value 2", "value 3"]
    assert [line for line, _ in quarantined(place)] == [1]


@pytest.mark.usefixtures("unknown_writers")
def test_a_last_line_end_that_comes_late_is_no_line(place: Place) -> None:
    with begun(place, "slow.jsonl", lines(1).rstrip()) as out:
        after(place, 10)
        write(out, b"\n")
    after(place, 10)
    assert answers(place) == ["value 1"]
    assert len(place.ledger.batches.latest()) == 1


@pytest.mark.usefixtures("unknown_writers")
def test_a_file_that_its_writer_begins_anew_is_read_anew(place: Place) -> None:
    with begun(place, "slow.jsonl", lines(1, 2, 3)) as out:
        after(place, 10)
        out.truncate(0)
        out.seek(0)
        write(out, lines(4))
    after(place, 10)
    assert answers(place)[-1] == "value 4"


def test_a_file_that_comes_under_the_name_of_one_being_removed_is_taken_too(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The producer's rename falls between the last look at the old file and its removal."""
    original, done = pathlib.Path.unlink, []

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == "cron.jsonl" and not done:
            done.append(path)
            fresh = place.layout.inbox / ".new.tmp"
            fresh.write_bytes(lines(2))
            fresh.rename(place.layout.inbox / "cron.jsonl")
        original(path, missing_ok=missing_ok)

    place.drop("cron.jsonl", lines(1))
    monkeypatch.setattr(pathlib.Path, "unlink", unlink)
    place.pass_over()
    place.pass_over()
    assert done and answers(place) == ["value 1", "value 2"]


def test_a_file_that_takes_the_place_of_another_while_that_is_read_is_taken(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, done = pathlib.Path.rename, []

    def rename(path: Path, target: Path) -> Path:
        if path.name == "cron.jsonl" and not done:
            done.append(path)
            fresh = place.layout.inbox / ".new.tmp"
            fresh.write_bytes(lines(2))
            original(fresh, place.layout.inbox / "cron.jsonl")
        return original(path, target)

    place.drop("cron.jsonl", lines(1))
    monkeypatch.setattr(pathlib.Path, "rename", rename)
    for _ in range(3):
        place.pass_over()
    assert done and answers(place) == ["value 2"]


@pytest.mark.parametrize("name", [".4711.part", ".4711.submit.part", ".mine.accepted.json.part"])
def test_a_start_deletes_no_unfinished_file_of_a_producer(place: Place, name: str) -> None:
    place.drop(name, b"half of a fi")
    place.restart()
    assert name in place.left()


def test_a_start_deletes_what_a_killed_submit_left_half_made(place: Place) -> None:
    place.drop(".palorad-4711.part", b"half of a fi")
    place.restart()
    assert place.left() == set()


def test_submit_answers_when_the_copy_and_its_name_are_on_the_disk(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, bool]] = []
    mine = tmp_path / "mine.jsonl"
    mine.write_bytes(lines(1))

    def fsync(descriptor: int) -> None:
        there = (place.layout.inbox / "mine.jsonl").exists()
        synced.append((os.fstat(descriptor).st_ino, there))

    monkeypatch.setattr(os, "fsync", fsync)
    place.intake.submit(mine)
    copy = (place.layout.inbox / "mine.jsonl").stat().st_ino
    folder = place.layout.inbox.stat().st_ino
    assert (copy, False) in synced, "the bytes first"
    assert synced[-1] == (folder, True), "then the name"


def test_submit_takes_nobodys_place(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A producer drops a file of the same name while the copy is made."""
    mine, theirs = tmp_path / "a.jsonl", place.layout.inbox / "a.jsonl"
    mine.write_bytes(lines(1))
    original = os.fsync

    def fsync(descriptor: int) -> None:
        if not theirs.exists() and place.ledger.facts.find() == ():
            theirs.write_bytes(lines(2))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    place.intake.submit(mine)
    monkeypatch.undo()
    place.pass_over()
    assert sorted(answers(place)) == ["value 1", "value 2"]


def test_what_was_claimed_before_a_crash_is_found_again(place: Place) -> None:
    home = place.layout.inbox / ".12-34.claimed"
    home.mkdir()
    (home / "a.jsonl").write_bytes(lines(1))
    (place.layout.inbox / ".13-35.claimed").mkdir()
    place.restart()
    place.pass_over()
    assert answers(place) == ["value 1"]
    told = read_receipt(place.layout.inbox / "a.jsonl")
    assert told is not None and told.accepted == 1
    assert place.left() == {"a.jsonl.accepted.json"}


def test_a_name_that_steers_a_terminal_is_told_harmlessly_and_its_receipt_kept_up(
    place: Place,
) -> None:
    name = "a\x1b[31m\nb\udcff\u202e.jsonl"
    place.drop(name, lines(1))
    (receipt,) = place.pass_over()
    assert receipt.file == "a\\x1b[31m\\nb\\xff\\u202e.jsonl"
    assert receipt.batch is not None and place.ledger.batches.get(receipt.file)
    assert place.left() == {f"{receipt.file}.accepted.json"}
    assert place.intake.update_receipt(receipt.batch, ("x",)) is not None


def test_two_daemons_on_one_inbox_are_refused(tmp_path: Path) -> None:
    first, second = Layout(tmp_path / "one"), Layout(tmp_path / "two", tmp_path / "one" / "inbox")
    for folder in (*first.directories(), *second.directories()):
        folder.mkdir(parents=True, exist_ok=True)
    with alone(first):
        for other in (first, second):
            with pytest.raises(AlreadyRunning, match="another palorad"), alone(other):
                pass
    with alone(second):
        pass
