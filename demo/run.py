"""`palorad demo`: the main job from end to end, with the real daemon and the real endpoint."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType

from daemon.cli.session import console, say
from daemon.config.settings import Settings
from demo.ask import Endpoint, rate
from demo.expert import expert_correct
from demo.follow import Follow
from demo.picture import draw
from demo.questions import (
    Measured,
    Questions,
    examples,
    same_answers,
)
from demo.report import (
    BaseFigures,
    DemoReport,
    Rejected,
    RevisionReport,
    examples_table,
    goals,
    machine_in_use,
    ratio_interval,
    results_table,
    seconds_table,
    versions_in_use,
)
from demo.setup import (
    DaemonProcess,
    DemoFailed,
    DemoOptions,
    check_parts,
    fact_files,
    write_config,
)
from policies.gate.figures import percent

__all__ = ["DemoOptions", "run_demo"]


def run_demo(options: DemoOptions) -> int:
    """Run it; 0 when every goal is reached, 1 otherwise. Raises `DemoFailed`."""
    check_parts(options)
    files = fact_files(options)
    with _folder(options.keep) as folder, _termination_as_interrupt():
        config = write_config(folder, options)
        daemon = DaemonProcess(config, folder / "daemon.log")
        try:
            report = _Demonstration(options, Settings.load(config), daemon, files).run()
        finally:
            daemon.stop()
        _show(report)
        _write(report, options, folder)
    return _conclude(report)


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise DemoFailed(f"--keep {keep}: the folder is not empty")
        yield keep.resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="palorad-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(report: DemoReport) -> None:
    for table in (examples_table(report.examples), results_table(report), seconds_table(report)):
        console.print()
        console.print(table)
    for rejected in report.rejected:
        say("")
        say(f"{rejected.file}: {rejected.verdict}")
        for reason in rejected.reasons:
            say(f"  {reason}")


def _write(report: DemoReport, options: DemoOptions, folder: Path) -> None:
    picture = options.picture or (folder if options.keep else Path("demo-out")) / "demo.png"
    draw(report, picture)
    say("")
    say(f"picture: {picture}")
    if options.report:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(report.model_dump_json(indent=2) + "\n")
        say(f"report: {options.report}")


def _conclude(report: DemoReport) -> int:
    console.print()
    for goal in report.goals:
        say(f"{'reached' if goal.reached else 'MISSED '}  {goal.name}: {goal.line}")
    missed = [g.name for g in report.goals if not g.reached]
    total = report.seconds["total"]
    say("")
    say(
        f"The demonstration missed: {', '.join(missed)} ({total:.0f} s)."
        if missed
        else f"All goals reached in {total:.0f} s."
    )
    return 1 if missed else 0


class _Demonstration:
    """The steps in their order; what was measured gathers in `revisions`."""

    def __init__(
        self,
        options: DemoOptions,
        settings: Settings,
        daemon: DaemonProcess,
        files: tuple[Path, ...],
    ) -> None:
        self.settings = settings
        self.files = files
        self.scenario = options.scenario
        self.questions = Questions.read(files, options.items, options.scenario)
        self.endpoint = Endpoint(settings.server.urls[0], settings.model.alias)
        self.follow = Follow(settings, daemon, options.scenario.batch_s)
        self.revisions: list[RevisionReport] = []
        self.started = time.monotonic()

    def run(self) -> DemoReport:
        self._say(f"starting the daemon with its {self.settings.server.kind} server")
        self.follow.until_serving()
        self._say(f"{self.endpoint.url} answers as {self.endpoint.model}")
        if self.scenario.note:
            self._say(self.scenario.note)
        before = self._measure(None, None, None, {})
        after = before
        for file in self.files:
            after = self._learn(file, before)
        expert = self._expert()
        rejected = [self._refuse(self.scenario.false_facts, after)]
        rollback_ok = self._roll(after)
        return DemoReport(
            model=self.settings.model.path.name,
            server=self.settings.server.kind,
            revisions=self.revisions,
            base=BaseFigures(
                base_reasoning=rate(before.reasoning),
                expert_reasoning=expert,
                locality=rate(before.locality),
            ),
            rejected=rejected,
            rollback_ok=rollback_ok,
            items=self.questions.counts(),
            examples=examples(before, after, self.questions.stems),
            goals=goals(self.revisions, rejected, rollback_ok),
            seconds={"total": time.monotonic() - self.started},
            versions=versions_in_use(),
            machine=machine_in_use(),
        )

    def _learn(self, file: Path, before: Measured) -> Measured:
        batch = self.follow.drop(file)
        settled = self.follow.until_settled(batch, file.name)
        after = self._measure(file.stem, settled.verdict, before, settled.seconds)
        if settled.verdict != "pass":
            for reason in settled.reasons:
                self._say(f"  {reason}")
        return after

    def _measure(
        self,
        stem: str | None,
        verdict: str | None,
        before: Measured | None,
        seconds: dict[str, float],
    ) -> Measured:
        with self.follow.status("asking the endpoint") as status:
            measured = self.questions.measure(
                self.endpoint,
                lambda done, total: status.update(f"asking the endpoint: {done} of {total}"),
            )
        base = before or measured
        report = RevisionReport(
            number=self.follow.target(),
            batch=stem,
            verdict=verdict,
            accuracy={s: rate(measured.accuracy, s) for s in self.questions.stems},
            accuracy_all=rate(measured.accuracy),
            reasoning=rate(measured.reasoning),
            reasoning_vs_base=ratio_interval(
                [a.correct for a in base.reasoning], [a.correct for a in measured.reasoning]
            ),
            locality=rate(measured.locality),
            seconds=seconds,
        )
        self.revisions.append(report)
        self._say(
            f"revision {report.number} ({stem or 'base'}): accuracy "
            + ", ".join(percent(r) for r in report.accuracy.values())
            + f"; reasoning {percent(report.reasoning)}; locality {percent(report.locality)}"
        )
        return measured

    def _refuse(self, file: Path, live: Measured) -> Rejected:
        batch = self.follow.drop(file)
        settled = self.follow.until_settled(batch, file.name)
        now = self._ask_facts()
        self._say(f"{file.name}: {settled.verdict}")
        return Rejected(
            file=file.stem,
            verdict=settled.verdict or settled.state,
            reasons=list(settled.reasons),
            live_unchanged=same_answers(live.accuracy, now.accuracy),
        )

    def _ask_facts(self) -> Measured:
        with self.follow.status("asking the endpoint"):
            facts = replace(self.questions, reasoning=(), locality=())
            return facts.measure(self.endpoint, lambda _done, _total: None)

    def _roll(self, live: Measured) -> bool:
        """Back to the revision before the last one and forward again, as clients see it."""
        last = self.revisions[-1]
        earlier = next((r for r in reversed(self.revisions) if r.number < last.number), None)
        if earlier is None:
            return False
        self.follow.change("rollback", earlier.number)
        back = self._ask_facts()
        self._say(
            f"rolled back to revision {earlier.number}: accuracy "
            + ", ".join(percent(rate(back.accuracy, s)) for s in self.questions.stems)
        )
        self.follow.change("forward", last.number)
        again = self._ask_facts()
        self._say(
            f"forward to revision {last.number}: accuracy "
            + ", ".join(percent(rate(again.accuracy, s)) for s in self.questions.stems)
        )
        as_before = all(
            abs(rate(back.accuracy, s) - earlier.accuracy[s]) <= 0.02 for s in self.questions.stems
        )
        went_back = {a.revision for a in back.accuracy} == {str(earlier.number)}
        return as_before and went_back and same_answers(live.accuracy, again.accuracy)

    def _expert(self) -> float | None:
        with self.follow.status("measuring the probe's expert"):
            problems, tokens = self.questions.reasoning, self.scenario.skill_tokens
            correct = expert_correct(self.settings, problems, tokens)
        if not correct:
            self._say("no SVF factors, so no expert")
            return None
        expert = sum(correct) / len(correct)
        self._say(f"the probe's expert, without any facts: reasoning {percent(expert)}")
        return expert

    def _say(self, line: str) -> None:
        say(f"{time.monotonic() - self.started:5.0f} s  {line}")
