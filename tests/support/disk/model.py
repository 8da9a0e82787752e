"""Files and folders in memory, of each of which is known what a power cut would leave."""

from __future__ import annotations

import random
import stat
import time
from dataclasses import dataclass, field

SECTOR = 512
ROOT = 1

# One change of names that a journal keeps whole or not at all: (folder, name, inode or None).
Naming = tuple[tuple[int, str, int | None], ...]


@dataclass
class Inode:
    """What is seen now, and of a file or a folder what is on the disk for good."""

    mode: int
    data: bytearray = field(default_factory=bytearray)
    entries: dict[str, int] = field(default_factory=dict)
    kept: bytes = b""
    kept_entries: dict[str, int] = field(default_factory=dict)
    # Since the last sync: (place, bytes), or (size, None) for a change of length.
    unsynced: list[tuple[int, bytes | None]] = field(default_factory=list)
    links: int = 1
    owner: tuple[int, int] = (0, 0)
    changed: int = 0
    modified: int = 0
    path: str = ""

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True)
class Image:
    """What a disk holds when power comes back: files by path, and folders (None)."""

    at: int
    after: str
    marks: tuple[str, ...]
    reordered: bool
    content: dict[str, tuple[int, bytes] | None]


class Files:
    """The tree of one file system."""

    def __init__(self) -> None:
        self.inodes: dict[int, Inode] = {ROOT: Inode(stat.S_IFDIR | 0o755)}
        self.namings: list[Naming] = []
        self.touch(self.inodes[ROOT])

    @staticmethod
    def touch(inode: Inode, content: bool = True) -> None:
        inode.changed = time.time_ns()
        if content:
            inode.modified = inode.changed

    def find(self, folder: int, name: str) -> int | None:
        return self.inodes[folder].entries.get(name)

    def make(self, folder: int, name: str, mode: int, owner: tuple[int, int]) -> int:
        number = len(self.inodes) + 1
        self.inodes[number] = Inode(mode, owner=owner)
        self.touch(self.inodes[number])
        self.name(((folder, name, number),))
        return number

    def name(self, naming: Naming) -> None:
        """Change names; on the disk only once one of the folders is synced."""
        for folder, name, number in naming:
            entries = self.inodes[folder].entries
            gone = entries.pop(name, None)
            if gone is not None:
                self.inodes[gone].links -= 1
            if number is not None:
                entries[name] = number
                self.inodes[number].links += 1
                self.inodes[number].path = f"{self.inodes[folder].path}/{name}".lstrip("/")
                self.touch(self.inodes[number], content=False)
            self.touch(self.inodes[folder])
        self.namings.append(naming)

    def write(self, number: int, place: int, data: bytes) -> None:
        inode = self.inodes[number]
        _put(inode.data, place, data)
        inode.unsynced.append((place, data))
        self.touch(inode)

    def resize(self, number: int, size: int) -> None:
        inode = self.inodes[number]
        _resize(inode.data, size)
        inode.unsynced.append((size, None))
        self.touch(inode)

    def sync(self, number: int) -> bool:
        """fsync of a file or a folder; whether that made a difference."""
        inode = self.inodes[number]
        if not inode.is_folder:
            changed = bool(inode.unsynced)
            inode.kept, inode.unsynced = bytes(inode.data), []
            return changed
        here = [naming for naming in self.namings if any(part[0] == number for part in naming)]
        self.namings = [naming for naming in self.namings if naming not in here]
        for naming in here:
            self._keep(naming, {n: i.kept_entries for n, i in self.inodes.items() if i.is_folder})
        return bool(here)

    def settle(self) -> None:
        """Everything as it is now is on the disk."""
        self.namings = []
        for inode in self.inodes.values():
            inode.kept, inode.unsynced = bytes(inode.data), []
            inode.kept_entries = dict(inode.entries)

    @staticmethod
    def _keep(naming: Naming, folders: dict[int, dict[str, int]]) -> None:
        for folder, name, number in naming:
            folders[folder].pop(name, None)
            if number is not None:
                folders[folder][name] = number

    # --- a power cut -----------------------------------------------------------------------------

    def left(self, draw: random.Random | None = None) -> dict[str, tuple[int, bytes] | None]:
        """What is there after a power cut now: nothing unsynced, or what `draw` happens to keep.

        A disk may write in any order: each change of names and each sector by itself.
        """
        folders = {n: dict(i.kept_entries) for n, i in self.inodes.items() if i.is_folder}
        if draw is not None:
            for naming in self.namings:
                if draw.random() < 0.5:
                    self._keep(naming, folders)
        content: dict[str, tuple[int, bytes] | None] = {}
        self._walk(ROOT, "", folders, content, draw)
        return content

    def _walk(
        self,
        folder: int,
        path: str,
        folders: dict[int, dict[str, int]],
        content: dict[str, tuple[int, bytes] | None],
        draw: random.Random | None,
    ) -> None:
        for name, number in sorted(folders[folder].items()):
            inode, where = self.inodes[number], f"{path}/{name}".lstrip("/")
            if inode.is_folder:
                content[where] = None
                self._walk(number, where, folders, content, draw)
            elif stat.S_ISREG(inode.mode):
                content[where] = (stat.S_IMODE(inode.mode), _kept(inode, draw))


def _kept(inode: Inode, draw: random.Random | None) -> bytes:
    if draw is None or not inode.unsynced:
        return inode.kept
    data = bytearray(inode.kept)
    for place, written in inode.unsynced:
        if written is None:
            if draw.random() < 0.5:
                _resize(data, place)
            continue
        for start in range(0, len(written), SECTOR):
            if draw.random() < 0.5:
                _put(data, place + start, written[start : start + SECTOR])
    return bytes(data)


def _put(data: bytearray, place: int, written: bytes) -> None:
    if len(data) < place:
        data.extend(bytes(place - len(data)))
    data[place : place + len(written)] = written


def _resize(data: bytearray, size: int) -> None:
    del data[size:]
    data.extend(bytes(size - len(data)))
