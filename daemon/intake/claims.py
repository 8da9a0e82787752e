"""Files that intake has taken out of their writers' way, and what has been read of each."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapters import files
from daemon.base import faults
from daemon.intake.inbox import Drop, free_name, opened, storable_name

_MARK: Final = re.compile(r"\.\d+-\d+\.claimed")


@dataclass(frozen=True, slots=True)
class Claim:
    """A file in a folder of its own below the inbox, where only who has it open still writes."""

    path: Path

    @property
    def mark(self) -> str:
        """What no other claimed file has."""
        return self.path.parent.name

    @property
    def name(self) -> str:
        """The name under which it was dropped, as text that can be stored."""
        return storable_name(self.path.name)


@dataclass(frozen=True, slots=True)
class Portion:
    """Bytes `start` up to `end` of a claimed file, which was last changed at `changed_ns`.

    A file whose writer had it open when it was claimed may have several, `number` from 0; each is
    a batch with a receipt of its own.
    """

    claim: Claim
    number: int
    start: int
    end: int
    changed_ns: int
    batch: str

    @property
    def name(self) -> str:
        """The name that its batch and receipt bear."""
        return f"{self.claim.name}+{self.number}" if self.number else self.claim.name

    @property
    def signature(self) -> str:
        """What the ledger knows it by."""
        return f"{self.claim.mark}:{self.start}:{self.end}:{self.changed_ns}"


def portion_of(claim: Claim, number: int, batch: str, signature: str) -> Portion:
    """The portion that the ledger knows by a signature."""
    start, end, changed_ns = map(int, signature.removeprefix(f"{claim.mark}:").split(":"))
    return Portion(claim, number, start, end, changed_ns, batch)


class Claims:
    """Claimed files below the inbox; each is there until nobody writes to it any more."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, drop: Drop) -> Claim | None:
        """Claim what has a drop's name now, in one step; None where nothing has it any more.

        Raises `OSError` where the inbox does not allow it; the drop stays then.
        """
        status = drop.path.stat(follow_symlinks=False)
        home = self._folder / f".{status.st_ino}-{status.st_ctime_ns}.claimed"
        home.mkdir(mode=0o700)
        files.sync(self._folder)  # else a power cut could keep the rename and lose where it led
        claim = Claim(home / drop.path.name)
        try:
            drop.path.rename(claim.path)
        except OSError as error:
            home.rmdir()
            if isinstance(error, FileNotFoundError):
                return None
            raise
        faults.point("intake:claimed")
        return claim

    def all(self) -> list[Claim]:
        """What is claimed, in the order of inode numbers; what is no file goes back."""
        found = []
        with os.scandir(self._folder) as entries:
            homes = sorted(Path(e.path) for e in entries if _MARK.fullmatch(e.name))
        for home in filter(_is_ours, homes):
            held = sorted(home.iterdir())
            for path in held:
                if stat.S_ISREG(path.stat(follow_symlinks=False).st_mode):
                    found.append(Claim(path))
                else:
                    path.rename(free_name(self._folder, path.name))
            if not held:
                home.rmdir()
        return found

    def release(self, claim: Claim) -> None:
        """Remove a claimed file for good."""
        claim.path.unlink()
        faults.point("intake:removed")
        claim.path.parent.rmdir()
        files.sync(self._folder)


def _is_ours(home: Path) -> bool:
    status = home.stat(follow_symlinks=False)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def same_file(claim: Claim, drop: Drop) -> bool:
    """Whether what was claimed is, unchanged, what was looked at under its name."""
    descriptor = opened(claim.path)
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return (status.st_ino, status.st_size, status.st_mtime_ns) == (
        drop.inode,
        drop.size,
        drop.changed_ns,
    )
