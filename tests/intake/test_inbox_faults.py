"""Whatever happens to the inbox: it is told, nothing is lost, and intake goes on by itself."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.intake.receipts import read_receipt
from tests.intake.test_intake import Place, lines


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.ledger.close()


def answers(place: Place) -> list[str]:
    return [fact.answer for fact in place.ledger.facts.find()]


def failing(error: int, when: Callable[[Any], bool], really: Callable[..., Any]) -> Any:
    """The function, except that it fails for some first argument."""

    def fails(first: Any, *rest: Any, **more: Any) -> Any:
        if when(first):
            raise OSError(error, os.strerror(error), str(first))
        return really(first, *rest, **more)

    return fails


def test_an_inbox_that_is_gone_and_comes_back_is_read_again(place: Place) -> None:
    shutil.rmtree(place.layout.inbox)
    assert place.pass_over() == [] and not place.intake.busy
    (problem,) = place.intake.problems
    assert str(place.layout.inbox) in problem and "cannot be read" in problem
    place.restart()
    place.layout.inbox.mkdir()
    place.drop("a.jsonl", lines(1))
    assert place.pass_over()[0].accepted == 1
    assert place.intake.problems == ()


def test_an_inbox_that_goes_while_a_file_is_admitted_loses_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.drop("a.jsonl", lines(1))
    finish = place.ledger.admission.finish_batch

    def going(*arguments: Any) -> Any:
        shutil.rmtree(place.layout.inbox)
        return finish(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(place.ledger.admission, "finish_batch", going)
        place.pass_over()
    assert len(place.intake.problems) == 1
    place.layout.inbox.mkdir()
    place.drop("b.jsonl", lines(2))
    place.pass_over(60)
    assert answers(place) == ["value 1", "value 2"]
    assert place.intake.problems == ()


def test_an_inbox_that_may_not_be_looked_into_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.drop("a.jsonl", lines(1))
    with monkeypatch.context() as patched:
        denied = failing(errno.EACCES, lambda p: p == place.layout.inbox, os.scandir)
        patched.setattr(os, "scandir", denied)
        assert place.pass_over() == []
        assert "cannot be read: Permission denied" in place.intake.problems[0]
    assert place.pass_over()[0].accepted == 1


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES])
def test_a_read_only_inbox_keeps_its_files_until_it_can_be_written(
    place: Place, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    drop = place.drop("a.jsonl", lines(1))
    inside = place.layout.inbox
    with monkeypatch.context() as patched:
        for name in ("mkdir", "open", "unlink", "rename", "replace"):
            really = getattr(os, name)
            denied = failing(error, lambda p: Path(str(p)).is_relative_to(inside), really)
            patched.setattr(os, name, denied if name != "open" else reading(denied, really))
        for _ in range(5):
            assert place.pass_over() == [] and not place.intake.busy
        (problem,) = place.intake.problems
        assert "a.jsonl" in problem and os.strerror(error) in problem
        assert answers(place) == [], "it would be taken again and again"
    assert drop.exists()
    place.pass_over(600)
    assert answers(place) == ["value 1"]
    assert read_receipt(drop) is not None


def reading(denied: Any, really: Any) -> Any:
    """An `open` that lets files be read."""

    def opens(path: Any, flags: int, *rest: Any, **more: Any) -> Any:
        write = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return (denied if write else really)(path, flags, *rest, **more)

    return opens


def test_a_file_that_may_not_be_read_any_more_is_read_once_it_may(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = place.drop("a.jsonl", lines(1))
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", failing(errno.EACCES, lambda p: p == drop, os.open))
        (receipt,) = place.pass_over()
        assert receipt.error is not None and "give it read rights" in receipt.error
        assert place.pass_over() == []
    drop.chmod(0o600)
    drop.chmod(0o644)
    assert place.pass_over()[0].accepted == 1


def a_receipt(what: Any) -> bool:
    """Whether a call of the operating system is about the receipt of a file."""
    path = str(Path(f"/proc/self/fd/{what}").readlink()) if isinstance(what, int) else str(what)
    return ".accepted.json" in path or ".rejected.json" in path


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("data", [lines(1), b""], ids=["accepted", "refused"])
def test_a_receipt_that_could_not_be_written_is_written_later(
    place: Place, monkeypatch: pytest.MonkeyPatch, call: str, data: bytes
) -> None:
    """Nothing else asks for it: a writer that waits for the answer would wait for ever."""
    drop = place.drop("a.jsonl", data)
    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing(errno.ENOSPC, a_receipt, getattr(os, call)))
        assert place.pass_over() == []
        assert "the disk is full" in place.intake.problems[0]
    place.pass_over(seconds=60)
    told = read_receipt(drop)
    assert told is not None
    assert told.taken == bool(data)
    assert place.intake.problems == ()
    assert drop.exists() == (not data)
    assert not list(place.layout.inbox.glob(".*.claimed"))


def test_a_known_file_gets_its_receipt_although_it_could_not_be_written_at_first(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.drop("a.jsonl", lines(1))
    place.pass_over()
    again = place.drop("b.jsonl", lines(1))
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", failing(errno.EIO, a_receipt, os.replace))
        assert place.pass_over() == []
    place.pass_over(seconds=60)
    told = read_receipt(again)
    assert told is not None
    assert told.already_known


def test_a_file_under_a_former_name_has_a_receipt_of_its_own_after_a_crash(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands there is of the former file: it says nothing of this one."""
    place.drop("a.jsonl", lines(1))
    (former,) = place.pass_over()
    drop = place.drop("a.jsonl", lines(2, 3))
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", failing(errno.EIO, a_receipt, os.replace))
        assert place.pass_over() == []
    place.restart()
    place.pass_over()
    told = read_receipt(drop)
    assert told is not None
    assert told.batch != former.batch
    assert told.accepted == 2
