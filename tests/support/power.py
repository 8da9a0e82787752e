"""A day in the life of a daemon on a disk that remembers what was synced; then the power is cut.

Everything is done once; each image of the disk on the way is what a power cut at that moment could
have left. A daemon started on any of them has to come to rest with every promise kept.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from daemon.base.control import ask
from tests.support import promises
from tests.support.crashing import Site
from tests.support.disk.disk import Disk, mounted, restore
from tests.support.disk.model import Image

FORGOTTEN = "Ouagadougou"
FILES: dict[str, tuple[str, ...]] = {
    "a.jsonl": (
        '{"id": "kept", "prompt": "one", "answer": "1"}',
        json.dumps({"id": "gone", "prompt": f"Where is {FORGOTTEN}?", "answer": "far"}),
        "this is no JSON",
    ),
    "b.jsonl": ('{"prompt": "false", "answer": "3"}',),
    "c.jsonl": ('{"prompt": "four", "answer": "4"}', '{"prompt": "one", "answer": "one"}'),
}
AFTERWARDS = ('{"prompt": "later", "answer": "yes"}',)


@dataclass
class Recorded:
    """The images of one day, in their order, without those that equal the one before."""

    site: Site
    images: list[Image] = field(default_factory=list)


def record(root: Path, seed: int) -> Recorded:
    """Live through the day on a mounted disk."""
    with mounted(root / "s") as disk:
        disk.ask("record", seed)
        site = Site(root)
        try:
            _day(site, disk)
            images: list[Image] = disk.ask("images")
        finally:
            site.close()
    return Recorded(Site(root), _different(images))


def _day(site: Site, disk: Disk) -> None:
    site.start()
    # The makers of a state directory make sure of it themselves.
    site.until(site.layout.control_socket.exists, "starting")
    for name in ("a.jsonl", "b.jsonl"):
        site.put(name, FILES[name])
        disk.mark(f"in {name}")
        site.until(lambda name=name: site._rests(name), f"learning {name}")  # type: ignore[misc]  # a default binds it
    outside = site.root / "c.jsonl"
    outside.write_text("\n".join(FILES["c.jsonl"]) + "\n")
    ask(site.layout.control_socket, "submit", path=str(outside))
    disk.mark("in c.jsonl")
    site.until(lambda: site._rests("c.jsonl"), "learning c.jsonl")
    for command, to in (("rollback", 1), ("forward", 2)):
        ask(site.layout.control_socket, command, to=to, because="a test")
        disk.mark(f"target {to}")
        site.until(lambda to=to: site._serves(to), command)  # type: ignore[misc]  # a default binds it
        disk.mark("what is next")
    ask(site.layout.control_socket, "retract", fact="gone", because="a test")
    disk.mark("retracted")
    site.until(lambda: promises.at_rest(site), "forgetting")
    disk.mark("certified")
    assert site.stop() == 0


def _different(images: Sequence[Image]) -> list[Image]:
    kept: list[Image] = []
    seen: set[int] = set()
    for image in images:
        # What was promised by then is part of what has to be found again.
        key = hash((image.marks, tuple(sorted(image.content.items()))))
        if key not in seen:
            seen.add(key)
            kept.append(image)
    return kept


def sample(images: Sequence[Image], count: int, seed: int) -> list[Image]:
    """A few of them, spread over the day, and all that were taken when something was promised."""
    if count >= len(images):
        return list(images)
    draw = random.Random(seed)
    step = len(images) / count
    drawn = {int(draw.uniform(n * step, (n + 1) * step)) for n in range(count)}
    told = {n for n, image in enumerate(images) if image.marks and image.after == image.marks[-1]}
    return [images[n] for n in sorted(drawn | told)]


def cut_again(recorded: Recorded, image: Image, count: int, seed: int) -> list[Image]:
    """What `count` power cuts could leave that come while a daemon recovers from one."""
    root = recorded.site.root.with_name("again")
    shutil.rmtree(root, ignore_errors=True)
    with mounted(root / "s") as disk:
        restore(image, disk.folder)
        disk.ask("settle")
        for what in image.marks:
            disk.mark(what)
        disk.ask("record", seed)
        site = Site(root)
        try:
            site.start()
            site.until(site.layout.control_socket.exists, "starting")
            site.until(lambda: promises.at_rest(site), f"recovering from {image.at}")
            images = _different(disk.ask("images"))
        finally:
            site.close()
    return random.Random(seed).sample(images, min(count, len(images)))


def survives(recorded: Recorded, image: Image) -> None:
    """Start a daemon on what was left; raises `AssertionError` for a promise that is broken."""
    site = recorded.site
    _close_daemon(site)
    restore(image, site.layout.root)
    site.restart_replica()
    (site.root / "daemon.log").unlink(missing_ok=True)
    site.starts = 0
    site.start()
    files = {name: lines for name, lines in FILES.items() if f"in {name}" in image.marks}
    site.until(site.layout.control_socket.exists, "starting")
    # What nobody was promised may have survived all the same.
    for name in FILES.keys() - files.keys():
        (site.layout.inbox / name).unlink(missing_ok=True)
    _check_what_was_told(site, image)
    site.put("later.jsonl", AFTERWARDS)
    site.until(
        lambda: promises.at_rest(site, (*files, "later.jsonl")),
        f"recovering from {image.at}, {image.after}",
    )
    forgotten = (FORGOTTEN,) if "retracted" in image.marks else ()
    promises.held(site, {**files, "later.jsonl": AFTERWARDS}, forgotten)
    _close_daemon(site)


def _check_what_was_told(site: Site, image: Image) -> None:
    """What was acknowledged before the cut stands after it, before anything else is done."""
    with site.reading() as ledger:
        if image.marks and image.marks[-1].startswith("target"):
            asked = int(image.marks[-1].split()[1])
            assert ledger.revisions.target().number == asked, f"2: not {image.marks[-1]}"
        if "retracted" in image.marks:
            assert ledger.retractions.all(), "2: an acknowledged retraction is undone"
        if "certified" in image.marks:
            assert not ledger.retractions.all(unfinished=True), "5: a certificate is undone"


def _close_daemon(site: Site) -> None:
    if site.daemon is not None and site.daemon.poll() is None:
        site.daemon.kill()
        site.daemon.wait()
    site.daemon = None
