"""A directory that forgets on a power cut what was not synced, after POSIX's strict reading.

What a file holds is kept by `fsync` of the file, what a folder lists by `fsync` of the folder.
Everything else may or may not have reached the disk. Only calls of Python's `os` are seen; SQLite's
own files are `spared`, and judged by what their connection is set to.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

CALLS: Final = ("fsync", "replace", "rename", "unlink", "remove", "rmdir")


@dataclass
class _Node:
    """One inode; held open, so that its number is not given again."""

    handle: int
    folder: bool
    names: dict[str, int] = field(default_factory=dict)
    content: bytes = b""


class Volatile:
    """Watches everything below `root`; `heard` is called before each durable call with its name."""

    def __init__(self, root: Path, spared: Callable[[str], bool]) -> None:
        self.root = root
        self.heard: Callable[[str], None] = lambda _name: None
        self._spared = spared
        self._nodes: dict[int, _Node] = {}
        self._real: dict[str, Any] = {}

    def __enter__(self) -> Self:
        for name in CALLS:
            self._real[name] = getattr(os, name)
            setattr(os, name, self._watched(name))
        return self

    def __exit__(self, *_: object) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)
        self._forget()

    def _watched(self, name: str) -> Callable[..., Any]:
        real = self._real[name]

        def call(*arguments: Any, **named: Any) -> Any:
            if name != "fsync":
                if self._inside(arguments[0], named.get("dir_fd") or named.get("src_dir_fd")):
                    self.heard(f"os.{name}")
                return real(*arguments, **named)
            path = _where(arguments[0])
            if not path.startswith(os.fspath(self.root)):
                return real(*arguments)
            self.heard("os.fsync")
            done = real(*arguments)
            self._synced(arguments[0])
            return done

        return call

    def _inside(self, path: Any, dir_fd: int | None) -> bool:
        where = _where(dir_fd) if dir_fd is not None else os.fspath(path)
        return str(where).startswith(os.fspath(self.root))

    # --- what is durable -----------------------------------------------------------------------

    def settle(self) -> None:
        """Everything as it is now is on the disk."""
        self._forget()
        for folder, _, names in os.walk(self.root):
            self._synced_folder(Path(folder))
            for name in names:
                path = Path(folder, name)
                if path.is_file() and not self._spared(name):
                    self._node(path).content = path.read_bytes()

    def _forget(self) -> None:
        for node in self._nodes.values():
            os.close(node.handle)
        self._nodes.clear()

    def _synced(self, descriptor: int) -> None:
        path = Path(_where(descriptor))
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self._synced_folder(path)
        elif path.exists() and not self._spared(path.name):
            self._node(path).content = path.read_bytes()

    def _synced_folder(self, path: Path) -> None:
        node = self._node(path)
        node.names = {
            name: self._number(path / name) for name in _listed(path) if not self._spared(name)
        }

    def _number(self, path: Path) -> int:
        self._node(path)
        return path.lstat().st_ino

    def _node(self, path: Path) -> _Node:
        number = path.lstat().st_ino
        if number not in self._nodes:
            handle = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            self._nodes[number] = _Node(handle, stat.S_ISDIR(path.lstat().st_mode))
        return self._nodes[number]

    # --- the cut -------------------------------------------------------------------------------

    def cut(self, chance: random.Random) -> None:
        """The power goes: of what was not synced, chance decides what is left."""
        now_names: dict[int, dict[str, int]] = {}
        now_content: dict[int, bytes] = {}
        for folder, _, names in os.walk(self.root):
            here = Path(folder)
            now_names[self._number(here)] = {
                name: self._number(here / name) for name in _listed(here) if not self._spared(name)
            }
            for name in names:
                path = here / name
                if path.is_file() and not self._spared(name):
                    now_content[self._number(path)] = path.read_bytes()
        mode = chance.choice(("nothing", "everything but", "mixed", "mixed"))
        wanted: dict[str, bytes | None] = {}
        seen: set[int] = set()
        kept: set[int] = set()

        def keep(kind: str) -> bool:
            if mode == "mixed":
                return chance.random() < 0.5
            return mode == "everything but" and kind == "names"

        def visit(number: int, path: Path) -> None:
            node = self._nodes[number]
            if not node.folder:
                content = node.content
                if keep("content"):
                    content = now_content.get(number, content)
                wanted[os.fspath(path)] = content
                kept.add(number)
                return
            if number in seen:
                return
            seen.add(number)
            wanted[os.fspath(path)] = None
            listed = now_names.get(number, node.names) if keep("names") else node.names
            for name, child in sorted(listed.items()):
                visit(child, path / name)

        visit(self.root.lstat().st_ino, self.root)
        self._renamed(wanted, kept)
        self._become(wanted)
        self.settle()

    def _renamed(
        self,
        wanted: dict[str, bytes | None],
        kept: set[int],
    ) -> None:
        """A file on its way from one folder to another is in one of them, never in none."""
        durable = {n for node in self._nodes.values() for n in node.names.values()}
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                number = path.lstat().st_ino
                if number in durable - kept and not self._spared(name):
                    wanted[os.fspath(path)] = self._nodes[number].content
                    for parent in path.parents:
                        if parent != self.root and parent.is_relative_to(self.root):
                            wanted.setdefault(os.fspath(parent), None)

    def _become(self, wanted: dict[str, bytes | None]) -> None:
        for folder, _, names in os.walk(self.root, topdown=False):
            for name in names:
                path = Path(folder, name)
                content = wanted.get(os.fspath(path))
                if not self._spared(name) and (content is None or path.is_symlink()):
                    self._real["unlink"](path)
            if folder not in wanted:
                shutil.rmtree(folder)
        for name, content in sorted(wanted.items()):
            path = Path(name)
            if content is None:
                path.mkdir(exist_ok=True)
            elif not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)


def _where(descriptor: int) -> str:
    return os.fspath(Path(f"/proc/self/fd/{descriptor}").readlink())


def _listed(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())
