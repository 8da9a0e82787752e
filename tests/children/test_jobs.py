"""Leased children: real processes that report, fail, hang, are stopped and are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from daemon.children import jobs as jobs_module
from daemon.children.jobs import (
    NO_ROOM,
    Jobs,
    JobState,
    Launcher,
    Progress,
    held,
    last_progress,
    started_at,
)
from daemon.children.worker import StepContext
from policies.records import Record

STEPS = """
import os, signal, sys, time
from pathlib import Path
from adapters.errors import StoreConflict
from daemon.children.jobs import Progress
from policies.errors import ConfigError
from policies.records import Record

class Report(Record):
    said: str

def train(desk):
    said = desk.request
    if "error" in said:
        raise ConfigError("x.jsonl, line 3: no prompt")
    if "full" in said:
        try:
            Path("/dev/full").write_text("x")
        except OSError as error:
            if "published" in said:
                raise StoreConflict("cannot publish it") from error
            raise
    if "library" in said:
        raise RuntimeError("IO error: No space left on device (os error 28)")
    if "bug" in said:
        raise KeyError("a bug")
    if "kill" in said:
        os.kill(os.getpid(), signal.SIGKILL)
    if "deaf" in said:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    count = desk.workdir / "count"
    first = int(count.read_text()) if count.exists() else 0
    for step in range(first, 400 if "long" in said or "deaf" in said else 2):
        count.write_text(str(step + 1))
        desk.progress(Progress(stage="train", done=step + 1, total=400))
        time.sleep(0.02)
    return Report(said=said)
"""


class Request(Record):
    what: str


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "steps_for_a_test.py").write_text(STEPS)
    monkeypatch.setenv("PALORAD_STEPS", "steps_for_a_test")
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(root)]))
    return tmp_path / "work" / "1-train"


def begin(jobs: Jobs, workdir: Path, request: Request) -> int:
    jobs.prepare(workdir, request)
    return jobs.start("train", workdir)


def until_ended(jobs: Jobs, workdir: Path) -> JobState:
    end = time.monotonic() + 60
    while (state := jobs.poll(workdir)).outcome == "running":
        assert time.monotonic() < end
        time.sleep(0.02)
    return state


def until_at_work(jobs: Jobs, workdir: Path) -> Progress:
    end = time.monotonic() + 60
    while (state := jobs.poll(workdir)).progress is None:
        assert state.outcome == "running"
        assert time.monotonic() < end
        time.sleep(0.02)
    return state.progress


def test_a_child_reports_and_is_found_finished_by_the_next_daemon(workdir: Path) -> None:
    jobs = Jobs()
    pid = begin(jobs, workdir, Request(what="short"))
    assert started_at(pid) is not None
    assert jobs.running() == (workdir,)
    state = until_ended(jobs, workdir)
    assert state.outcome == "finished"
    assert state.report is not None
    assert json.loads(str(state.report["said"])) == {"what": "short"}
    assert state.progress is not None
    assert state.progress.done == 2
    assert jobs.running() == ()
    assert Jobs().poll(workdir).outcome == "finished"


ELSEWHERE = """
from steps_for_a_test import Report

def train(desk):
    return Report(said=(desk.workdir / "launcher.json").read_text())
"""


def test_a_step_may_be_done_elsewhere_as_its_launcher_says(workdir: Path) -> None:
    (workdir.parents[1] / "elsewhere_for_a_test.py").write_text(ELSEWHERE)
    jobs = Jobs({"train": Launcher("elsewhere_for_a_test", Request(what="gpu1:6379"))})
    begin(jobs, workdir, Request(what="short"))
    state = until_ended(jobs, workdir)
    assert state.report is not None
    assert json.loads(state.report["said"]) == {"what": "gpu1:6379"}


def test_an_error_is_its_line_a_bug_its_last_line_and_the_log(workdir: Path) -> None:
    jobs = Jobs()
    for what, words in (
        ("error", ("ConfigError", "x.jsonl, line 3: no prompt")),
        ("bug", ("ChildDied", "ended with status 1: KeyError: 'a bug' (see ")),
        ("kill", ("ChildDied", "was ended by SIGKILL")),
    ):
        begin(jobs, workdir, Request(what=what))
        state = until_ended(jobs, workdir)
        assert state.outcome == "failed"
        assert state.error is not None
        assert words[0] == state.error.kind
        assert words[1] in state.error.error


@pytest.mark.parametrize("what", ["full", "full when published", "told by a library"])
def test_a_full_disk_is_told_from_every_other_end_of_a_child(workdir: Path, what: str) -> None:
    jobs = Jobs()
    begin(jobs, workdir, Request(what=what))
    state = until_ended(jobs, workdir)
    assert state.error is not None
    assert state.error.kind == NO_ROOM
    assert not state.error.final
    assert f"{workdir}: the disk is full: " in state.error.error


def test_a_child_that_the_kernel_kills_for_want_of_memory_says_so(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([3, 4, 4, 4])
    monkeypatch.setattr(jobs_module, "oom_kills", lambda: next(counts))
    jobs = Jobs()
    for words in ("ran out of memory", "by somebody or by the kernel"):
        begin(jobs, workdir, Request(what="kill"))
        state = until_ended(jobs, workdir)
        assert state.error is not None
        assert f"was ended by SIGKILL{' when the kernel ' if 'ran' in words else ', '}{words}" in (
            state.error.error
        )


def test_nothing_is_kept_of_children_that_have_ended(workdir: Path) -> None:
    """A daemon runs for months, and each plan has a directory of its own."""
    jobs = Jobs()
    for what in ("short", "error"):
        begin(jobs, workdir, Request(what=what))
        until_ended(jobs, workdir)
    begin(jobs, workdir, Request(what="long"))
    until_at_work(jobs, workdir)
    jobs.kill(workdir)
    assert not [kept for kept in vars(jobs).values() if kept]


def test_a_stopped_child_leaves_no_word_and_goes_on_from_where_it_was(workdir: Path) -> None:
    jobs = Jobs()
    begin(jobs, workdir, Request(what="long"))
    until_at_work(jobs, workdir)
    jobs.cancel(workdir)
    assert until_ended(jobs, workdir).outcome == "absent"
    reached = int((workdir / "count").read_text())
    (workdir / "progress.jsonl").unlink()
    begin(jobs, workdir, Request(what="long"))
    assert until_at_work(jobs, workdir).done > reached
    jobs.kill(workdir)
    assert not held(workdir)
    assert jobs.poll(workdir).outcome == "absent"


def test_a_deaf_child_is_killed(workdir: Path) -> None:
    jobs = Jobs()
    begin(jobs, workdir, Request(what="deaf"))
    until_at_work(jobs, workdir)
    jobs.cancel(workdir)
    time.sleep(0.2)
    assert jobs.poll(workdir).outcome == "running"
    assert held(workdir)
    jobs.kill(workdir)
    assert not held(workdir)


def test_children_die_with_the_daemon(workdir: Path, tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from daemon.children.jobs import Jobs
        from policies.records import Record
        class Request(Record):
            what: str
        jobs, workdir = Jobs(), Path({str(workdir)!r})
        jobs.prepare(workdir, Request(what="deaf"))
        print(jobs.start("train", workdir), flush=True)
        time.sleep(60)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as daemon:
        assert daemon.stdout is not None
        child = int(daemon.stdout.readline())
        jobs = Jobs()
        until = time.monotonic() + 60
        while last_progress(workdir) is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert jobs.poll(workdir).outcome == "running"
        born = started_at(child)
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    end = time.monotonic() + 20
    while started_at(child) == born and held(workdir):
        assert time.monotonic() < end, "the child outlives its daemon"
        time.sleep(0.02)
    assert jobs.poll(workdir).outcome == "absent"


def test_a_desk_gives_its_file_and_its_signal_back(tmp_path: Path) -> None:
    former = signal.getsignal(signal.SIGTERM)
    with StepContext(tmp_path) as desk:
        assert signal.getsignal(signal.SIGTERM) != former
        desk.progress(Progress(stage="train", done=1))
    assert signal.getsignal(signal.SIGTERM) == former
    with pytest.raises(ValueError, match="closed file"):
        desk.progress(Progress(stage="train", done=2))
    seen = last_progress(tmp_path)
    assert seen is not None
    assert seen.done == 1


def test_half_a_line_of_progress_is_not_read(tmp_path: Path) -> None:
    assert last_progress(tmp_path) is None
    whole = Progress(stage="train", done=3, total=9).model_dump_json()
    (tmp_path / "progress.jsonl").write_text(f'{whole}\n{{"stage": "tr')
    found = last_progress(tmp_path)
    assert found is not None
    assert found.done == 3


def test_progress_that_a_power_cut_tore_holds_up_nothing(workdir: Path) -> None:
    """The size was on the disk, the data was not; the child that resumes says one thing more."""
    workdir.mkdir(parents=True)
    torn = b'{"stage":"train","done":1}\n' + bytes(40)
    (workdir / "progress.jsonl").write_bytes(torn)
    with StepContext(workdir) as desk:
        desk.progress(Progress(stage="facts", done=5, total=5))
    (workdir / "report.json").write_text("{}")
    state = Jobs().poll(workdir)
    assert state.outcome == "finished"
    assert state.progress == Progress(stage="facts", done=5, total=5)
    (workdir / "progress.jsonl").write_bytes(torn + b"\n")
    assert last_progress(workdir) == Progress(stage="train", done=1)


@pytest.mark.parametrize("name", ["report.json", "error.json"])
def test_a_damaged_last_word_has_the_step_done_again(workdir: Path, name: str) -> None:
    workdir.mkdir(parents=True)
    (workdir / name).write_bytes(bytes(12))
    state = Jobs().poll(workdir)
    assert state.outcome == "failed"
    assert state.error is not None
    assert str(workdir) in state.error.error
    assert Jobs().poll(workdir).outcome == "absent"
