"""Facts from a request to the published revision, by the training child's own code."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from statistics import median
from typing import Any

from adapters import models
from adapters.config import TrainConfig
from adapters.schedule import steps_needed
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.runs import Watched, timed
from benchmarks.gpu.texts import POLICY
from daemon.children import request as requests
from daemon.children.jobs import Progress
from daemon.children.worker import StepContext
from daemon.config.sections import ProtectionSettings
from daemon.training.child import train
from daemon.training.messages import TrainRequest
from policies.records import Example, PlanKind

AROUND = 0.4
"""The share of a phase's time that is kept for what is not steps."""


class Watch(StepContext):
    """A child's context that notes when each step was reported."""

    def __init__(self, workdir: Path) -> None:
        self.reported: dict[str, list[float]] = {}
        super().__init__(workdir)

    def progress(self, progress: Progress) -> None:
        """As the child's."""
        self.reported.setdefault(progress.stage, []).append(time.monotonic())
        super().progress(progress)


def run(bench: Bench) -> dict[str, Any]:
    """A usual batch."""
    return learnt(bench, bench.shape.facts)


def learnt(bench: Bench, facts: int) -> dict[str, Any]:
    """Seconds of each part; `seconds` with all steps, estimated where some were cut off.

    Of more steps than the time suffices for the first are taken, and the run then ends as usual.
    """
    config = TrainConfig().resolved(models.pick_device().type, facts)
    needed = steps_needed(config, facts, len(bench.material.replay))
    trial = timed(bench, config, Watched(share=0.0), most=4, within=bench.left / 8, facts=facts)
    model_dir = bench.written()
    bench.release()
    most = max(3, int((1 - AROUND) * bench.left / median(trial.seconds)))
    asked = _request(bench, facts, model_dir)
    if most < needed:
        asked = asked.model_copy(update={"config": asked.config.model_copy(update={"steps": most})})
    began = time.monotonic()
    done, watch = _child(bench, asked)
    whole = time.monotonic() - began
    times = watch.reported["train"]
    taken = int(done.report["steps"])
    each = (times[-1] - times[0]) / max(len(times) - 1, 1)
    cut = needed - taken if most < needed else 0
    return {
        "facts": facts,
        "replayed": len(bench.material.replay),
        "protection": asked.protection.kind,
        "steps_needed": needed,
        "steps_taken": len(times),
        "steps_cut": cut,
        "ended_early": bool(done.report["stopped_early"]),
        "seconds_measured": round(whole, 2),
        "seconds": round(whole + cut * each, 2),
        "step_s": round(each, 4),
        "until_first_step_s": round(times[0] - began, 2),
        "after_last_step_s": round(began + whole - times[-1], 2),
        "leak": done.report["leak"],
    }


def _child(bench: Bench, asked: TrainRequest) -> tuple[Any, Watch]:
    workdir = bench.folder / "work"
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    requests.write(workdir, asked, {})
    with Watch(workdir) as watch:
        return train(watch), watch


def _request(bench: Bench, facts: int, model_dir: Path) -> TrainRequest:
    """What the daemon would write down; without a probe nothing is protected."""
    given = bench.material
    at = bench.folder / "state"
    shutil.rmtree(at, ignore_errors=True)
    at.mkdir(parents=True)
    return TrainRequest(
        kind=PlanKind.LEARN,
        number=1,
        rank=bench.shape.rank,
        seed=bench.seed,
        model_dir=model_dir,
        base_name=bench.shape.name,
        base_sha256=models.base_hash(model_dir),
        facts=given.facts[:facts],
        replay=given.replay,
        config=TrainConfig(),
        paraphrases=POLICY,
        known=_lines(at / "known.jsonl", "answer", given.known),
        reasoning=_lines(at / "skill.jsonl", "solution", given.reasoning),
        probe=bench.probe,
        protection=ProtectionSettings(kind="none" if bench.probe is None else "activations"),
        max_lora_rank=bench.shape.rank,
        adapters=at / "adapters",
        served=at / "served",
        records=at / "records",
    )


def _lines(path: Path, completion: str, examples: tuple[Example, ...]) -> Path:
    rows = [{"prompt": one.prompt, completion: one.completion} for one in examples]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
