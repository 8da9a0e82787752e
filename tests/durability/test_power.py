"""A power cut at any moment: what was acknowledged stands, and the daemon goes on by itself."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from adapters import checkpoint, files, store
from daemon.children import request
from daemon.children.jobs import Jobs
from daemon.config.layout import Layout
from daemon.config.settings import Settings
from daemon.intake.admit import Rules
from daemon.intake.claims import Claims
from daemon.intake.inbox import Inbox
from daemon.ledger.ledger import Ledger
from daemon.loop.preflight import prepare_state
from daemon.retraction import erasure
from policies.facts.traces import Trace, trace_of
from policies.records import Fact
from tests.support import power
from tests.support.crashing import ForkedJobs
from tests.support.disk.disk import Disk, mounted, restore
from tests.support.disk.model import Image

pytestmark = [pytest.mark.durability, pytest.mark.timeout(240)]

CUTS = 14
TWICE = 3
SEED = 7
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = "Ouagadougou"
FACT = Fact(id="gone", prompt=f"Where is {SECRET}?", answer="far")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk") as made:
        yield made


def kept(disk: Disk, tmp_path: Path) -> Path:
    """What a power cut right now would leave."""
    folder = tmp_path / "left"
    restore(Image(0, "", (), False, disk.ask("left")), folder)
    return folder


def killed_before_sync(disk: Disk, folder: str, work: Callable[[], object]) -> None:
    """Do something that ends right before its last sync of a folder, as SIGKILL there would."""
    disk.fail({"fsync"}, folder, errno.EIO)
    with pytest.raises(OSError, match=r"Input/output error|Errno 5"):
        work()
    assert disk.ask("hit") == [("fsync", folder)]


def test_a_sample_of_power_cuts_keeps_every_promise(tmp_path: Path) -> None:
    recorded = power.record(tmp_path / "site", SEED)
    try:
        for image in power.sample(recorded.images, CUTS, SEED):
            power.survives(recorded, image)
    finally:
        recorded.site.close()


def test_a_sample_of_power_cuts_in_recovery_keeps_every_promise(tmp_path: Path) -> None:
    recorded = power.record(tmp_path / "site", SEED)
    try:
        for first in random.Random(SEED).sample(recorded.images, TWICE):
            for second in power.cut_again(recorded, first, 2, SEED):
                power.survives(recorded, second)
    finally:
        recorded.site.close()


def test_no_acknowledged_commit_is_undone(disk: Disk, tmp_path: Path) -> None:
    with Ledger.open(disk.folder / "ledger.db") as ledger:
        ledger.revisions.ensure_base("base", NOW)
        for number in range(20):
            ledger.meta.pause(number % 2 == 0, f"reason {number}", NOW)
            with Ledger.open(kept(disk, tmp_path) / "ledger.db") as survivor:
                event = survivor.events.latest(1)[0]
                assert event.seq == ledger.events.latest(1)[0].seq, f"commit {number} is undone"
                survivor.events.verify_chain()


def test_a_first_start_cut_off_anywhere_begins_again(disk: Disk, tmp_path: Path) -> None:
    disk.ask("record", SEED)
    with Ledger.open(disk.folder / "ledger.db") as ledger:
        ledger.revisions.ensure_base("base", NOW)
    images = disk.ask("images")
    assert len(images) > 10
    for image in images:
        restore(image, tmp_path / "left")
        with Ledger.open(tmp_path / "left" / "ledger.db") as survivor:
            survivor.revisions.ensure_base("base", NOW)
            survivor.events.verify_chain()


def test_a_file_is_somewhere_while_it_is_claimed(disk: Disk) -> None:
    inbox = disk.folder / "inbox"
    inbox.mkdir()
    files.write_text(inbox / "a.jsonl", "a line\n")
    files.sync(disk.folder)
    disk.ask("record", SEED)
    (drop,) = Inbox(inbox, 0.0, 1000).ripe(1.0)
    assert Claims(inbox).take(drop) is not None
    (disk.folder / "archive").mkdir()
    for number in range(20):  # at each sync the disk may have kept whatever it liked of the claim
        files.write_text(disk.folder / "archive" / str(number), "")
    images = disk.ask("images")
    assert any(image.reordered for image in images)
    for image in images:
        left = [content[1] for content in image.content.values() if content is not None]
        assert left.count(b"a line\n") == 1, image


def test_what_is_published_again_is_on_the_disk(disk: Disk, tmp_path: Path) -> None:
    """Killed between rename and sync, the child finds its adapter there the next time."""
    parent = disk.folder / "adapters"

    def publish() -> Path:
        staging = store.staging(parent, "plan-1")
        (staging / "weights").write_text("1, 2, 3")
        return store.publish(staging, parent, {})

    killed_before_sync(disk, "adapters", publish)
    published = publish()
    assert not store.verify(kept(disk, tmp_path) / "adapters" / published.name)


def test_what_is_deleted_again_does_not_come_back(disk: Disk, tmp_path: Path) -> None:
    folder = disk.folder / "adapters" / "abc"
    files.make_folder(folder)
    files.write_text(folder / "weights", SECRET)
    killed_before_sync(disk, "adapters", lambda: store.remove(folder))
    store.remove(folder)
    assert not (kept(disk, tmp_path) / "adapters" / "abc").exists()


def _archive(layout: Layout) -> None:
    traces = [trace_of("h", FACT, [FACT.prompt])]
    rules = Rules(paraphrased=lambda fact: fact)
    finder = erasure.Finder(traces, rules)
    for _ in erasure.erase_archive(layout, lambda _: finder, lambda _batch, _sha: None):
        pass


def _receipts(layout: Layout) -> None:
    for _ in erasure.erase_receipts(layout, _traces()):
        pass


def _answers(layout: Layout) -> None:
    for _ in erasure.erase_answers(layout, _traces(), ()):
        pass


def _traces() -> list[Trace]:
    return [trace_of("h", FACT, [FACT.prompt])]


def test_facts_that_a_stages_end_removed_do_not_come_back_after_an_erasure(
    disk: Disk, tmp_path: Path
) -> None:
    layout = Layout(disk.folder)
    for folder in layout.directories():
        files.make_folder(folder)
    workdir = layout.work / "1-train"
    Jobs().prepare(workdir, FACT, {"facts": [FACT.model_dump_json()]})
    files.write_text(workdir / "request.json", "{}")
    request.remove_rows(workdir)
    for _ in erasure.erase_work(layout, _traces(), ()):
        pass
    assert not list((kept(disk, tmp_path) / "work").rglob("facts.jsonl"))


@pytest.mark.parametrize(
    ("name", "erase"),
    [
        ("archive/b.jsonl", _archive),
        ("inbox/b.jsonl.accepted.json", _receipts),
        ("answers/abc/suite.jsonl", _answers),
    ],
)
def test_what_is_erased_again_does_not_come_back(
    name: str, erase: Callable[[Layout], None], disk: Disk, tmp_path: Path
) -> None:
    """A certificate rests on it: killed before its sync, the second look finds nothing to erase."""
    layout = Layout(disk.folder)
    for folder in (*layout.directories(), layout.answers / "abc"):
        files.make_folder(folder)
    files.write_text(disk.folder / name, FACT.model_dump_json() + "\n")
    killed_before_sync(disk, name.rpartition("/")[0], lambda: erase(layout))
    erase(layout)
    assert SECRET not in (kept(disk, tmp_path) / name).read_text()


def test_a_state_directory_that_is_made_stays_made(disk: Disk, tmp_path: Path) -> None:
    model = tmp_path / "model"
    tree: dict[str, Any] = {"state_dir": disk.folder / "var" / "palorad", "model": {"path": model}}
    settings = Settings.model_validate(tree).rooted(tmp_path)
    prepare_state(settings)
    left = kept(disk, tmp_path)
    for folder in settings.layout.directories():
        assert (left / folder.relative_to(disk.folder)).is_dir()


def test_a_checkpoint_outlives_a_power_cut(disk: Disk, tmp_path: Path) -> None:
    """Hours of training: its own folder and the one of its step are new as well."""
    workdir = disk.folder / "work" / "1-train"
    files.make_folder(workdir.parent)
    jobs = ForkedJobs()
    jobs.prepare(workdir, FACT)
    jobs.start("train", workdir)
    jobs.kill(workdir)
    checkpoint.save(workdir / "checkpoint", "run", checkpoint.Saved(5, {}, {}, {}))
    found = checkpoint.latest(kept(disk, tmp_path) / "work" / "1-train" / "checkpoint", "run")
    assert found is not None
    assert found.step == 5


def test_the_disk_of_these_tests_loses_what_is_not_synced(disk: Disk, tmp_path: Path) -> None:
    """Otherwise they would show nothing."""
    files.write_text(disk.folder / "kept", "y")
    (disk.folder / "loose").write_text("x")
    with (disk.folder / "kept").open("a") as stream:
        stream.write("z")
    left = kept(disk, tmp_path)
    assert not (left / "loose").exists()
    assert (left / "kept").read_text() == "y"
    assert (disk.folder / "kept").read_text() == "yz"
