"""SIGKILL at every durable step that the code has, and again during recovery."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from daemon.base import faults
from daemon.base.control import ask
from daemon.keeping.backup import back_up
from daemon.keeping.restore import check
from daemon.ledger.ledger import Ledger
from daemon.verification.verify import verify
from policies.errors import DaemonUnreachable
from tests.support import crash_tour, durable_code
from tests.support.crash_matrix import Matrix
from tests.support.crashing import Forked, Site

pytestmark = [pytest.mark.durability, pytest.mark.timeout(300)]

SEED = 3
NOW = datetime(2026, 1, 1, tzinfo=UTC)
# Steps that no scene of the tour passes, each with the test that kills at it.
ELSEWHERE = {
    "set_aside": "tests/durability/test_crash.py::test_killed_while_a_batch_is_set_aside",
    "keep_paraphrases": "tests/durability/test_crash.py::"
    "test_what_only_some_settings_store_is_kept_all_or_none",
    "withdraw": "tests/durability/test_crash.py::"
    "test_what_only_some_settings_store_is_kept_all_or_none",
    "correct": "tests/durability/test_crash.py::"
    "test_what_only_some_settings_store_is_kept_all_or_none",
    "set_feed_cursor": "tests/durability/test_crash.py::"
    "test_what_only_some_settings_store_is_kept_all_or_none",
    "backup": "tests/durability/test_crash.py::test_a_backup_that_is_killed_is_made_anew",
    "restore": "tests/keeping/test_backup.py::"
    "test_a_restore_that_was_killed_goes_on_and_no_daemon_starts_before",
    "notify": "tests/notification/test_daemon.py::"
    "test_killed_at_any_step_of_the_outbox_it_is_done_whole_or_not_at_all",
    "prune": "tests/keeping/test_pruning.py::test_killed_at_any_point_the_next_run_ends_the_same",
    "remove": "tests/keeping/test_pruning.py::test_killed_at_any_point_the_next_run_ends_the_same",
    "sleep": "tests/loop/test_crash_sleep.py::"
    "test_killed_anywhere_the_server_ends_awake_verified_and_answering",
}
BACKUP = "test_a_backup_that_is_killed_is_made_anew"
RESTORE = "tests/keeping/test_backup.py, a restore that was killed"
CLUSTER = "tests/cluster/test_child.py, a child that died while it published"
ERASE_REST = "only of what a former palorad or a migration has left there"
# Files that only the real steps, the real server or a further start commit.
COMMITTED_ELSEWHERE = {
    "adapters.cache.save": "computed again when lost",
    "adapters.moment_files.save": "computed again when lost",
    "adapters.checkpoint.save": "test_power.py: test_a_checkpoint_outlives_a_power_cut",
    "adapters.probe_fit._publish": "by adapters.store.publish, as the probe of the tour",
    "adapters.probe_fit.fold_expert": "by adapters.store.publish, as the probe of the tour",
    "adapters.store._there_already": "test_power.py: test_what_is_published_again_is_on_the_disk",
    "adapters.store.staging": "makes only what a publication fills",
    "daemon.cluster.attempts.begin": "made again by the next attempt",
    "daemon.cluster.child._give_up": "said again by the next attempt",
    "daemon.cluster.ray_cluster.run_on_node": "written again by the next attempt",
    "daemon.cluster.results._judged": CLUSTER,
    "daemon.cluster.results._publish": CLUSTER,
    "daemon.cluster.results._take_records": "computed again when lost",
    "daemon.gate.answer_store.append": "tests/gate/test_answer_store.py, torn lines",
    "daemon.gate.answer_store.write_card": "tests/gate/test_answer_store.py",
    "daemon.retraction.erasure._erase_measured": "the tour's judging keeps no answers",
    "daemon.keeping.backup_store.copied": BACKUP,
    "daemon.keeping.backup_store.forget": BACKUP,
    "daemon.keeping.backup_store.take": BACKUP,
    "daemon.keeping.backup_store.write": BACKUP,
    "daemon.onboarding.asking._keep": "asked again when lost",
    "daemon.onboarding.first_day._write": "palorad init, which no daemon is part of",
    "daemon.keeping.pruning._delete": "tests/keeping/test_pruning.py",
    "daemon.keeping.restore._gather": RESTORE,
    "daemon.keeping.restore._put_aside": RESTORE,
    "daemon.keeping.restore._put_in_place": RESTORE,
    "daemon.keeping.restore.restore": RESTORE,
    "daemon.ledger.snapshot.copy": "a copy that is made anew",
    "daemon.retraction.erasure.erase_rest": ERASE_REST,
    "daemon.serving.server_command.install_middleware": "written anew at every start",
    "daemon.verification.keeper._append": "tests/verification/test_keeper.py",
    "daemon.training.child._serve": "by adapters.store.publish, as the tour's steps",
    "daemon.training.child.train": "by adapters.store.publish, as the tour's steps",
}


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return crash_tour.trace(tmp_path_factory.mktemp("trace"))


def test_no_durable_step_of_the_code_is_forgotten(passed: dict[str, list[str]]) -> None:
    for pattern, where in durable_code.points().items():
        known = any(re.fullmatch(pattern, point) for point in passed)
        elsewhere = ELSEWHERE.get(pattern.split(":")[0])
        assert known != bool(elsewhere), f"{where}: {pattern} is killed at nowhere, or twice over"
    for where in ELSEWHERE.values():
        path, _, name = where.partition("::")
        assert f"def {name}(" in Path(path).read_text(), where


def test_no_durable_file_of_the_code_is_forgotten(passed: dict[str, list[str]]) -> None:
    committed = {point.split(":")[1] for point in passed if point.startswith("commit:")}
    assert durable_code.commits() - committed == set(COMMITTED_ELSEWHERE)
    assert committed <= durable_code.commits()


def test_a_sample_of_kills_keeps_every_promise(
    passed: dict[str, list[str]], tmp_path: Path
) -> None:
    matrix = Matrix.of(passed, pairs=4, seed=SEED)
    matrix.sample(at_first=2, later=12, pairs=4, seed=SEED).survive(tmp_path)


@pytest.mark.parametrize("phase", faults.PHASES)
def test_killed_while_a_batch_is_set_aside(phase: str, tmp_path: Path) -> None:
    """Its archive is away for a while; once it is back the batch is whole by itself."""
    site = Site(tmp_path / "site")
    try:
        site.die_at("begin_batch:after", f"set_aside:{phase}")
        site.put("a.jsonl", ['{"prompt": "one", "answer": "1"}'])
        assert site.daemon is not None
        assert site.daemon.wait() == -signal.SIGKILL
        (archived,) = site.layout.archive.glob("*.jsonl")
        archived.rename(tmp_path / "away")
        site.until(lambda: site.died(f"set_aside:{phase}"), "setting it aside")
        (tmp_path / "away").rename(archived)
        site.until(lambda: site._rests("a.jsonl"), "learning a.jsonl")
        crash_tour.Tour(site, {"a.jsonl": ("x",)}).held()
    finally:
        site.close()


@pytest.mark.parametrize("point", ["backup:files", "backup:written"])
def test_a_backup_that_is_killed_is_made_anew(point: str, tmp_path: Path) -> None:
    site, root = Site(tmp_path / "site"), tmp_path / "backups"
    try:
        site.start()
        site.drop("a.jsonl", ["one", "two"])
        assert site.stop() == 0

        def once() -> int:
            back_up(site.layout, root, NOW)
            return 0

        died = Forked(once, {faults.VARIABLE: point}, tmp_path / "log")
        assert died.wait() == -signal.SIGKILL
        again = back_up(site.layout, root, NOW)
        assert check(root) == (again.number, again.manifest)
    finally:
        site.close()


@pytest.mark.parametrize("point", ["forget:revisions", "forget:adapters", "unloaded:before"])
def test_what_a_retraction_had_deleted_when_it_was_killed_is_no_finding(
    point: str, tmp_path: Path
) -> None:
    """Whoever restored it from a backup, as a finding says, would have the fact back."""
    with crash_tour.tour_at(tmp_path / "site") as tour:
        site = tour.site
        tour.play("learn")
        site.die_at(point)
        tour.number += 1
        tour.put(f"true {tour.number}", "Where is Ouagadougou?")
        tour.rest()
        with suppress(DaemonUnreachable):  # it may die before it has answered
            ask(site.layout.control_socket, "retract", fact=f"{tour.number}-1", because="a test")
        assert site.daemon is not None
        assert site.daemon.wait() == -signal.SIGKILL
        assert site.died(point)
        assert verify(site.settings, servers=lambda _: ()).lines == ()


def _paraphrased(ledger: Ledger) -> object:
    return ledger.paraphrases.of([row[0] for row in ledger.db.rows("SELECT id FROM facts")])


RARE: dict[str, tuple[Callable[[Ledger], object], Callable[[Ledger], object]]] = {
    "keep_paraphrases": (
        lambda ledger: ledger.paraphrases.keep(
            {row[0]: ["another"] for row in ledger.db.rows("SELECT id FROM facts")}
        ),
        _paraphrased,
    ),
    "set_feed_cursor": (
        lambda ledger: ledger.feeds.set_cursor("news", "7", NOW),
        lambda ledger: ledger.feeds.cursor("news"),
    ),
    "correct": (
        lambda ledger: ledger.quarantine.correct(ledger.batches.get("a.jsonl").id, 2, "b", NOW),
        lambda ledger: (
            ledger.quarantine.last(ledger.batches.get("a.jsonl").id),
            ledger.events.latest(1)[0].kind == "line.corrected",
        ),
    ),
    "withdraw": (
        lambda ledger: ledger.quarantine.withdraw(ledger.batches.get("a.jsonl").id, 2),
        lambda ledger: ledger.quarantine.last(ledger.batches.get("a.jsonl").id),
    ),
}


@pytest.mark.parametrize("phase", faults.PHASES)
@pytest.mark.parametrize("name", RARE)
def test_what_only_some_settings_store_is_kept_all_or_none(
    name: str, phase: str, tmp_path: Path
) -> None:
    change, look = RARE[name]
    site = Site(tmp_path / "site")
    try:
        site.start()
        site.put("a.jsonl", ['{"prompt": "one", "answer": "1"}', "no JSON"])
        site.until(lambda: site._rests("a.jsonl"), "learning a.jsonl")
        assert site.stop() == 0
        with site.reading() as ledger:
            before = look(ledger)

        def once() -> int:
            with Ledger.open(site.layout.ledger) as ledger:
                change(ledger)
            return 0

        died = Forked(once, {faults.VARIABLE: f"{name}:{phase}"}, tmp_path / "log")
        assert died.wait() == -signal.SIGKILL
        with site.reading() as ledger:
            assert (look(ledger) != before) == (phase == "after")
    finally:
        site.close()
