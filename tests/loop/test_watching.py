"""Events of the inbox: those of its files, whatever becomes of the folder, and none of its own."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daemon.loop.watching import Watching


class Looks:
    """How often somebody was told to look."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1

    async def after(self, seen: int, patience_s: float = 10.0) -> bool:
        for _ in range(int(patience_s / 0.02)):
            if self.count > seen:
                return True
            await asyncio.sleep(0.02)
        return False


@contextmanager
def watched(folder: Path, look: Looks) -> Iterator[Watching]:
    watching = Watching(folder, "events", look)
    try:
        watching.ensure()
        yield watching
    finally:
        watching.stop()


def test_a_new_file_is_told_and_reading_it_is_not(tmp_path: Path) -> None:
    async def live() -> None:
        look = Looks()
        with watched(tmp_path, look):
            seen = look.count
            (tmp_path / "a").write_text("x")
            assert await look.after(seen)
            await asyncio.sleep(0.2)
            seen = look.count
            for _ in range(5):
                (tmp_path / "a").read_text()
            assert not await look.after(seen, 0.5), "looking would have it look for ever"

    asyncio.run(live())


def test_a_folder_that_was_replaced_is_watched_again(tmp_path: Path) -> None:
    async def live() -> None:
        folder, look = tmp_path / "inbox", Looks()
        folder.mkdir()
        with watched(folder, look) as watching:
            shutil.rmtree(folder)
            watching.ensure()
            folder.mkdir()
            await asyncio.sleep(0.2)
            seen = look.count
            watching.ensure()
            assert look.count == seen + 1, "what came meanwhile"
            seen = look.count
            (folder / "a").write_text("x")
            assert await look.after(seen)

    asyncio.run(live())
