"""The disk that forgets: what was synced survives every cut, and what was not may be gone."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from adapters import files
from tests.support.life.volatile import Volatile

pytestmark = pytest.mark.durability
CUTS = range(30)


def after_cuts(root: Path, write: str) -> set[bytes | None]:
    """What `a` may hold after a cut, once `write` has been done to it."""
    found: set[bytes | None] = set()
    for seed in CUTS:
        home = root / str(seed)
        home.mkdir()
        path = home / "a"
        with Volatile(home, spared=lambda _name: False) as disk:
            path.write_bytes(b"old")
            disk.settle()
            if write == "durably":
                files.write_bytes(path, b"new")
            elif write == "renamed only":
                (home / "b").write_bytes(b"new")
                os.replace(home / "b", path)  # noqa: PTH105
            else:
                path.write_bytes(b"new")
            disk.cut(random.Random(seed))
        found.add(path.read_bytes() if path.exists() else None)
    return found


def test_what_was_put_in_place_is_there_after_every_cut(tmp_path: Path) -> None:
    assert after_cuts(tmp_path, "durably") == {b"new"}


def test_what_was_renamed_without_a_sync_may_be_old_new_or_empty(tmp_path: Path) -> None:
    assert after_cuts(tmp_path, "renamed only") == {b"old", b"new", b""}


def test_what_was_written_over_may_be_old_or_new(tmp_path: Path) -> None:
    assert after_cuts(tmp_path, "in place") == {b"old", b"new"}


def test_a_file_that_moved_between_folders_is_in_one_of_them(tmp_path: Path) -> None:
    places = set()
    for seed in CUTS:
        home = tmp_path / str(seed)
        (home / "from").mkdir(parents=True)
        (home / "to").mkdir()
        with Volatile(home, spared=lambda _name: False) as disk:
            (home / "from" / "a").write_bytes(b"kept")
            disk.settle()
            os.rename(home / "from" / "a", home / "to" / "a")  # noqa: PTH104
            disk.cut(random.Random(seed))
        found = [path for path in home.rglob("a") if path.read_bytes() == b"kept"]
        assert found
        places |= {path.parent.name for path in found}
    assert places == {"from", "to"}
