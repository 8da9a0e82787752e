"""Backups: whole, of one moment, written once, and the daemon that is restored answers the same."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adapters import store
from daemon.base.control import ask
from daemon.cli.main import app
from daemon.config.layout import Layout
from daemon.keeping import backup as backups
from daemon.keeping.backup import BackedUp, back_up
from daemon.keeping.backup_store import BackupStore, BackupUnusable
from daemon.keeping.restore import check, restore
from daemon.ledger.ledger import Ledger
from daemon.loop.instance import single_instance
from daemon.loop.preflight import prepare_state
from daemon.serving.client import HttpServer
from policies.errors import (
    ConfigError,
    LedgerUnusable,
    RequestRefused,
    ServerRefused,
    ServerUnreachable,
)
from tests.support.crashing import Site
from tests.support.fake_vllm import publish

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Place:
    """A small state directory, and where its backups lie."""

    def __init__(self, root: Path) -> None:
        self.layout, self.root = Layout(root / "state"), root / "backups"
        for folder in self.layout.directories():
            folder.mkdir(parents=True)
        with Ledger.open(self.layout.ledger) as ledger:
            ledger.revisions.ensure_base("base", NOW)
            ledger.meta.pause(True, "first", NOW)
        (self.layout.archive / "b1.jsonl").write_text('{"prompt": "p", "answer": "a"}\n')
        self.layout.admin_key.write_text("secret")
        self.layout.operator_key.write_text("token")
        self.layout.webhook_key.write_text("another")
        self.served = publish(self.layout.served, 1)

    def back_up(self, **options: Any) -> BackedUp:
        return back_up(self.layout, self.root, NOW, **options)

    def event(self, said: str) -> None:
        with Ledger.open(self.layout.ledger) as ledger:
            ledger.meta.pause(True, said, NOW)

    def wipe(self) -> None:
        shutil.rmtree(self.layout.root)
        self.layout.root.mkdir()

    def rights(self) -> dict[str, int]:
        """Of every folder, and of the ledger."""
        return {
            str(path.relative_to(self.layout.root)): path.stat().st_mode
            for path in self.layout.root.rglob("*")
            if path.is_dir() or path == self.layout.ledger
        }

    def content(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.layout.root)): path.read_bytes()
            for path in self.layout.root.rglob("*")
            if path.is_file() and not path.name.startswith("ledger.db")
        }


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# --- what a backup holds -----------------------------------------------------------------------


def test_a_restored_directory_is_what_was_backed_up(place: Place) -> None:
    (place.layout.records / "x").parent.mkdir()
    (place.layout.records / "x").write_text("made again when it is lost")
    (place.layout.work / "1-train").mkdir()
    (place.layout.work / "1-train" / "checkpoint").write_text("begun again")
    (place.layout.root / "anchor").write_text("what another part keeps here")
    place.layout.served.chmod(0o750)
    place.layout.work.chmod(0o700)
    place.layout.ledger.chmod(0o600)
    before, rights = place.content(), place.rights()
    place.back_up(secrets=True)
    place.wipe()
    restore(place.layout, place.root)
    rights.pop("work/1-train")
    assert place.rights() == rights
    left_out = {"records/x", "work/1-train/checkpoint"}
    assert place.content() == {k: v for k, v in before.items() if k not in left_out}
    assert not store.verify(place.layout.served / place.served)
    with Ledger.open(place.layout.ledger, readonly=True) as ledger:
        assert ledger.events.verify_chain() == 1


def test_keys_are_left_out_unless_asked_for_and_one_that_is_there_stays(place: Place) -> None:
    keys = {"admin.key", "operator.key", "webhook.key"}
    assert not keys & {*place.back_up().manifest.files}
    files = place.back_up(secrets=True).manifest.files
    assert {files[key].mode for key in keys} == {0o644}
    restore(place.layout, place.root, 1, aside=place.root.parent / "aside")
    assert place.layout.admin_key.read_text() == "secret"
    assert place.layout.operator_key.read_text() == "token"
    assert place.layout.webhook_key.read_text() == "another"


def test_a_second_backup_copies_only_what_is_new(place: Place) -> None:
    first = place.back_up()
    second = place.back_up()
    assert first.new_bytes > 0
    assert second.new_bytes == 0
    (place.layout.archive / "b2.jsonl").write_text("x" * 1000)
    assert place.back_up().new_bytes == 1000
    assert place.back_up().number == 4


def test_published_files_that_are_held_already_are_not_read_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.back_up()
    read: list[Path] = []
    really = backups.copied

    def copied(source: Path, target: Path) -> str:
        read.append(source)
        return really(source, target)

    monkeypatch.setattr(backups, "copied", copied)
    place.back_up()
    served = [path.name for path in read if place.layout.served in path.parents]
    assert served == ["manifest.json"]


def test_a_backup_is_of_one_moment_though_the_daemon_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes while files are copied is in none of the backup's ledger."""
    really = backups.copied

    def copied(source: Path, target: Path) -> str:
        place.event(source.name)
        return really(source, target)

    monkeypatch.setattr(backups, "copied", copied)
    done = place.back_up()
    place.wipe()
    restore(place.layout, place.root)
    with Ledger.open(place.layout.ledger, readonly=True) as ledger:
        assert ledger.events.verify_chain() == done.manifest.events


def test_a_drop_that_is_still_written_is_left_to_its_writer(place: Place) -> None:
    still, rests = place.layout.inbox / "still.jsonl", place.layout.inbox / "rests.jsonl"
    for path, age in ((still, 0), (rests, 60)):
        path.write_text("{}\n")
        when = NOW.timestamp() - age
        os.utime(path, (when, when))
    (place.layout.inbox / "old.jsonl.accepted.json").write_text("{}")
    held = place.back_up(stable_s=2.0).manifest.files
    assert {name for name in held if name.startswith("inbox/")} == {
        "inbox/rests.jsonl",
        "inbox/old.jsonl.accepted.json",
    }


def test_a_revision_that_is_not_what_was_published_is_named_and_left_out(place: Place) -> None:
    (place.layout.served / place.served / "identity.json").write_text("{}")
    done = place.back_up()
    assert done.manifest.damaged == (f"served/{place.served}",)
    assert not [name for name in done.manifest.files if name.startswith("served/")]


def test_a_ledger_that_was_altered_is_not_backed_up(place: Place) -> None:
    raw = sqlite3.connect(place.layout.ledger)
    raw.execute("DROP TRIGGER events_say")
    raw.execute("UPDATE events SET payload = '{}' WHERE seq = 1")
    raw.commit()
    raw.close()
    with pytest.raises(BackupUnusable, match="not backed up"):
        place.back_up()
    assert BackupStore(place.root).numbers() == []


def test_a_backup_within_the_state_directory_is_refused(place: Place) -> None:
    for root in (place.layout.root, place.layout.root / "backups", place.layout.root.parent):
        with pytest.raises(RequestRefused, match="name another"):
            back_up(place.layout, root, NOW)


def test_two_backups_at_once_are_refused(place: Place) -> None:
    with BackupStore(place.root).writing(), pytest.raises(BackupUnusable, match="another backup"):
        place.back_up()


def test_only_the_newest_backups_are_kept_if_so_asked(place: Place) -> None:
    place.back_up()
    (place.layout.archive / "b1.jsonl").write_text("another\n")
    place.back_up()
    kept = BackupStore(place.root)
    with kept.writing():
        assert kept.forget(1) == 1
    assert kept.numbers() == [2]
    held = {path.name for path in (place.root / "objects").rglob("*") if path.is_file()}
    assert held == {entry.sha256 for entry in kept.read()[1].files.values()}
    check(place.root)


# --- what is refused ---------------------------------------------------------------------------


def test_every_damaged_or_missing_file_is_found_before_anything_is_changed(place: Place) -> None:
    manifest = place.back_up().manifest
    before = place.content()
    aside = place.root.parent / "aside"
    for name, entry in manifest.files.items():
        path = BackupStore(place.root).path(entry.sha256)
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        for work in (
            lambda: check(place.root),
            lambda: restore(place.layout, place.root, None, aside),
        ):
            with pytest.raises(BackupUnusable, match=f"is damaged: {name}"):
                work()
        path.unlink()
        with pytest.raises(BackupUnusable, match=f"is incomplete: {name} is missing"):
            restore(place.layout, place.root, aside=aside)
        path.write_bytes(whole)
    assert place.content() == before
    assert not aside.exists()


def test_a_manifest_that_was_changed_is_refused(place: Place) -> None:
    place.back_up()
    path = place.root / "backups" / "000001.json"
    stored = json.loads(path.read_text())
    stored["backup"]["files"].pop("archive/b1.jsonl")
    path.write_text(json.dumps(stored))
    with pytest.raises(BackupUnusable, match="has been changed"):
        check(place.root)
    path.write_text("{")
    with pytest.raises(BackupUnusable, match="is no manifest"):
        check(place.root)


def test_a_backup_that_is_not_there_is_refused(place: Place) -> None:
    with pytest.raises(BackupUnusable, match="holds no backup"):
        check(place.root)
    place.back_up()
    with pytest.raises(BackupUnusable, match="holds no backup 7, but 1"):
        check(place.root, 7)


def test_a_state_directory_with_anything_in_it_is_not_overwritten(place: Place) -> None:
    place.back_up()
    before = place.content()
    with pytest.raises(RequestRefused, match="is not empty; say with --aside"):
        restore(place.layout, place.root)
    assert place.content() == before
    with pytest.raises(RequestRefused, match="within the state directory"):
        restore(place.layout, place.root, aside=place.layout.root / "old")
    aside = place.root.parent / "aside"
    restore(place.layout, place.root, aside=aside)
    moved = {str(p.relative_to(aside)) for p in aside.rglob("*") if p.is_file()}
    assert {"ledger.db", "archive/b1.jsonl"} <= moved


def test_a_backup_of_a_newer_palorad_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.back_up()
    place.wipe()
    monkeypatch.setattr("daemon.ledger.database.foreign", lambda _: "a newer schema (schema_9)")
    with pytest.raises(LedgerUnusable, match="newer schema"):
        restore(place.layout, place.root)
    assert list(place.layout.root.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_what_root_restores_belongs_to_the_owner_of_the_state_directory(place: Place) -> None:
    place.back_up()
    place.wipe()
    os.chown(place.layout.root, 12345, 12346)
    with single_instance(place.layout.lock):
        restore(place.layout, place.root)
    owners = {(p.stat().st_uid, p.stat().st_gid) for p in place.layout.root.rglob("*")}
    assert owners == {(12345, 12346)}


@pytest.mark.parametrize("point", ["restore:gathered", "restore:aside"])
def test_a_restore_that_was_killed_goes_on_and_no_daemon_starts_before(
    place: Place, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def die(name: str) -> None:
        if name == point:
            raise KilledError

    site = Site(place.root.parent / "site")
    settings = site.settings.model_copy(update={"state_dir": place.layout.root})
    site.close()
    place.back_up()
    before = place.content()
    aside = place.root.parent / "aside"
    with monkeypatch.context() as dying:
        dying.setattr("daemon.base.faults.point", die)
        with pytest.raises(KilledError):
            restore(place.layout, place.root, aside=aside)
    with pytest.raises(ConfigError, match="a restore was interrupted"):
        prepare_state(settings)
    restore(place.layout, place.root, aside=aside)
    assert place.content() == before
    prepare_state(settings)


# --- the drill ---------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def live_answers(site: Site) -> list[Any]:
    """What a client gets under the alias, and from which revision."""

    async def ask_them() -> list[Any]:
        server = HttpServer(site.settings.server.urls[0])
        try:
            prompts = ["prompt 0", "prompt 1"]
            said = await server.complete(site.settings.model.alias, prompts, max_tokens=4)
            return [(one.token_ids, one.headers["x-palorad-revision"]) for one in said]
        finally:
            await server.aclose()

    return asyncio.run(ask_them())


def durable(site: Site) -> dict[str, Any]:
    """All but the receipts, which any start brings up to date after a rollback."""
    return {key: value for key, value in site.state().items() if key != "receipts"}


def answers_again(site: Site) -> list[Any]:
    try:
        return live_answers(site)
    except (ServerRefused, ServerUnreachable):
        return []


def test_work_backup_wipe_restore_and_the_live_answers_are_the_same(
    site: Site, tmp_path: Path
) -> None:
    site.drop("first.jsonl", ["one"])
    site.drop("second.jsonl", ["two"])
    site.point("rollback", 1)
    site.drop("third.jsonl", ["three"])
    answers, before = live_answers(site), durable(site)
    assert answers[0][1] == "3"
    back_up(site.layout, tmp_path / "b", NOW)  # the daemon runs
    site.drop("fourth.jsonl", ["four"])
    assert live_answers(site) != answers
    assert site.stop() == 0

    shutil.rmtree(site.layout.root)
    site.layout.root.mkdir()
    with single_instance(site.layout.lock):
        restore(site.layout, tmp_path / "b")
    site.use(site.layout.root)
    site.until(lambda: answers_again(site) == answers, "answering as before")
    assert durable(site) == before
    site.point("rollback", 1)
    site.point("forward", 3)
    site.drop("fifth.jsonl", ["five"])
    ask(site.layout.control_socket, "retract", fact="three")
    site.until(lambda: any(site.layout.certificates.iterdir()), "forgetting")


def test_the_commands_back_up_check_and_restore(place: Place, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'state_dir = "{place.layout.root}"\n')
    run, directory = CliRunner(), str(place.root)
    chosen = ["--config", str(config), "--json"]
    made = run.invoke(app, ["backup", directory, *chosen])
    assert made.exit_code == 0, made.output
    assert json.loads(made.output)["number"] == 1
    assert run.invoke(app, ["restore", directory, "--check", *chosen]).exit_code == 0
    refused = run.invoke(app, ["restore", directory, *chosen])
    assert isinstance(refused.exception, RequestRefused)
    aside = str(tmp_path / "aside")
    assert run.invoke(app, ["restore", directory, "--aside", aside, *chosen]).exit_code == 0
    (place.layout.served / place.served / "identity.json").write_text("{}")
    again = run.invoke(app, ["backup", directory, "--keep", "1", *chosen])
    assert again.exit_code == 1
    said = json.loads(again.output)
    assert (said["forgotten"], said["damaged"]) == (1, [f"served/{place.served}"])
