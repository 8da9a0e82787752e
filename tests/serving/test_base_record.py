"""The base that answers is the one that was first served, in its files and in what is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.serving.base_record import BaseRecord
from daemon.serving.fleet import Fleet
from tests.serving.test_fence import Fleets


class Based(Fleets):
    """Two replicas over a base whose files lie in `model`."""

    def __init__(self, root: Path, replicas: int) -> None:
        self.root = root
        self.model = root / "model"
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")
        (self.model / "model.safetensors").write_bytes(b"weights" * 1000)
        super().__init__(root, replicas)

    def new_fleet(self) -> Fleet:
        fleet = super().new_fleet()
        fleet.common.base_record = BaseRecord(self.root / "base.json", self.root, self.model)
        return fleet

    def tamper(self) -> None:
        """Other weights of the same size and time of modification."""
        file = self.model / "model.safetensors"
        before = file.stat()
        file.write_bytes(b"wEights" * 1000)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    def restart(self) -> None:
        """Everything begins again: the servers and the daemon."""
        for replica in self.replicas:
            replica.start()
        self.fleet = self.new_fleet()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Based]:
    yield Based(tmp_path, 2)


@pytest.mark.parametrize("number", [0, 1])
def test_nothing_goes_live_on_a_base_whose_files_have_changed(world: Based, number: int) -> None:
    """The weights were never verified."""
    revision = world.revision(number)
    assert world.ensure(revision).done
    world.tamper()
    world.restart()
    result = world.ensure(revision)
    assert not result.answering
    assert "not those that were first used" in result.replicas[0].reason
    assert "put the former base back" in result.replicas[0].reason
    assert (world.asked(0), world.asked(1)) == ("503", "503")


def test_a_server_that_is_restarted_is_checked_by_a_daemon_that_runs_on(world: Based) -> None:
    first = world.revision(1)
    assert world.ensure(first).done
    world.tamper()
    world.replicas[1].start()
    world.ensure(first)
    assert (world.asked(0), world.asked(1)) == ("1", "503")


def test_a_server_over_another_base_is_fenced_off_and_the_others_go_on(world: Based) -> None:
    """The files here may be right where a server elsewhere has loaded others."""
    first, second = world.revision(1), world.revision(2)
    assert world.ensure(first).done
    world.fleet = world.new_fleet()
    world.replicas[1].base_token = 8
    result = world.ensure(first)
    assert "the base answers otherwise" in result.replicas[1].reason
    assert (world.asked(0), world.asked(1)) == ("1", "503")
    assert world.ensure(second, first).answering
    assert (world.asked(0), world.asked(1)) == ("2", "503")
    world.replicas[1].base_token = 7
    world.clock += 100
    assert world.ensure(second, first).done
    assert (world.asked(0), world.asked(1)) == ("2", "2")


def test_the_identity_is_kept_at_first_use_and_the_same_base_is_taken_again(world: Based) -> None:
    assert world.ensure(world.revision(0)).done
    kept = (world.root / "base.json").read_bytes()
    world.restart()
    assert world.ensure(world.revision(1)).done
    assert (world.root / "base.json").read_bytes() == kept


def test_a_damaged_record_is_no_leave_to_serve_anything(world: Based) -> None:
    assert world.ensure(world.revision(0)).done
    (world.root / "base.json").write_text("{")
    world.restart()
    result = world.ensure(world.revision(0))
    assert not result.answering
    assert "the base cannot be verified" in result.replicas[0].reason
