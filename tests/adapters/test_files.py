"""A file is replaced whole or not at all, and is on the disk before it is in its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adapters import files


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for text in ("one", "zwölf"):
        files.write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_former_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    files.write_json(path, {"n": 1})
    former = path.read_bytes()

    def write() -> None:
        with files.replacing(path) as stream:
            stream.write(b"half")
            raise ValueError("cut off")

    with pytest.raises(ValueError, match="cut off"):
        write()
    assert path.read_bytes() == former
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def seen(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", seen)
    monkeypatch.setattr(Path, "replace", renamed)
    files.write_bytes(tmp_path / "a", b"1")
    assert done == [".a.tmp", "rename", tmp_path.name]


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    files.write_text(path, "there")
    assert path.read_text() == "there"
