"""Worker steps that publish small directories at once, in place of learning and judging.

A prompt that says "nan" never trains, one that says "full" alone finds no room the first time.
"""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

from adapters import store
from adapters.errors import TrainingDiverged
from daemon.base import faults
from daemon.children.jobs import Progress
from daemon.children.worker import StepContext
from daemon.gate.messages import EvaluationReport, JudgingRequest
from daemon.ledger.records import Adapter, Served
from daemon.training.messages import ProbeReport, ProbeRequest, TrainDone, TrainRequest
from policies.errors import ServerUnreachable
from policies.gate.records import AnswerLikelihood, Outcome, UnlearningCheck, Verdict
from policies.gate.unlearning import UnlearningTolerance, unlearning_results
from policies.records import content_id
from tests.support.fake_vllm import TOKENS
from tests.support.hunger import GROUP, starve

SLOWNESS = "PALORAD_TEST_STEP_S"
JUDGING = "PALORAD_TEST_JUDGE_S"
"""Seconds that judging takes, where it is not to take as long as training."""
COUNTER = "PALORAD_TEST_COUNTER"
"""Where below the working directory the steps are counted from which a resumed one goes on."""
HELD = "PALORAD_TEST_HELD"
"""A file without which nobody gets beyond ten steps."""
MARKED = "PALORAD_TEST_MARKED"
"""If set, what is published tells which working directory it was made in."""
FAR = AnswerLikelihood(rank=900, probability=0.0001)


def probe(desk: StepContext) -> ProbeReport:
    request = ProbeRequest.model_validate_json(desk.request)
    staging = store.staging(request.probes, "probe")
    (staging / "probe.json").write_text("{}")
    faults.point("probe:written")
    published = store.publish(staging, request.probes, {})
    faults.point("probe:published")
    return ProbeReport(
        probe=published,
        served_dir=request.model_dir,
        served_sha256="base-sha",
        base_sha256="base-sha",
        fitted=True,
        seconds=0.0,
    )


def train(desk: StepContext) -> TrainDone:
    request = TrainRequest.model_validate_json(desk.request)
    for adapter in (*request.lineage, *request.start):
        store.read_manifest(adapter)
    work(desk)
    prompts = " ".join(fact.prompt for fact in request.facts)
    if "nan" in prompts:
        raise TrainingDiverged("the trained factors hold NaN or infinite values")
    if len(request.facts) == 1 and "full" in prompts and _first_time(desk):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(desk.workdir / "checkpoint"))
    if "hungry" in prompts and _first_time(desk):
        starve(Path(os.environ[GROUP]))
    text = json.dumps([[f.id for f in request.facts], request.seed, request.lineage_sha256])
    if MARKED in os.environ:
        text += desk.workdir.name
    staging = store.staging(request.adapters, desk.workdir.name)
    (staging / "adapter_config.json").write_text(text)
    faults.point("train:written")
    faults.point("train:trained")
    adapter = store.publish(staging, request.adapters, {})
    faults.point("train:adapter-published")
    served = compose(request, desk.workdir.name, text)
    faults.point("train:revision-published")
    return TrainDone(
        adapter=Adapter(sha256=_sha(adapter), rank=request.rank),
        served=Served(name=served.name, sha256=_sha(served)),
        rank=request.rank,
        report={},
        seconds={},
    )


def evaluate(desk: StepContext) -> EvaluationReport:
    """Whatever says "false" fails, "unsure" alone leaves it to a person; "hard" is learnt only
    alone, "flaky" breaks down once.
    """
    request = JudgingRequest.model_validate_json(desk.request)
    evaluation = request.evaluation
    work(desk, os.environ.get(JUDGING, ""))
    missed = [f.id for f in evaluation.facts if "hard" in f.prompt and len(evaluation.facts) == 2]
    if any("flaky" in f.prompt for f in evaluation.facts) and _first_time(desk):
        raise ServerUnreachable("the server went away")
    false = any("false" in f.prompt for f in evaluation.facts)
    unsure = len(evaluation.facts) == 1 and "unsure" in evaluation.facts[0].prompt
    faults.point("evaluate:judged")
    passed = Outcome.INCONCLUSIVE if unsure else Outcome.PASS
    verdict = Verdict(
        outcome=Outcome.FAIL if false else passed,
        rule="what is false fails",
        reasons=("holds a false sum",) if false else (),
        suites=(),
        learnt=tuple(f.id for f in evaluation.facts if f.id not in missed),
        not_learnt=tuple(missed),
        unlearning=unlearning_results(
            [
                UnlearningCheck(fact=fact.id, held_out=False, base=FAR, candidate=FAR)
                for fact in evaluation.unlearn
            ],
            UnlearningTolerance(),
        ),
    )
    return EvaluationReport(verdict=verdict, scorecards=(), seconds={})


def _first_time(desk: StepContext) -> bool:
    marker = desk.workdir / "broke-down"
    before = marker.exists()
    marker.touch()
    return not before


def work(desk: StepContext, seconds: str = "") -> None:
    """Take as long as the test says, resuming as a checkpoint would."""
    steps = int(float(seconds or os.environ.get(SLOWNESS, "0")) * 20)
    counter = desk.workdir / os.environ.get(COUNTER, "counter")
    counter.parent.mkdir(exist_ok=True)
    done = int(counter.read_text()) if counter.exists() else 0
    for step in range(done, steps):
        time.sleep(0.05)
        while step == 10 and HELD in os.environ and not Path(os.environ[HELD]).exists():
            time.sleep(0.05)
        # Beside it first, as a real checkpoint: a kill in between must not leave an empty one.
        beside = counter.with_suffix(".part")
        beside.write_text(str(step + 1))
        beside.replace(counter)
        desk.progress(Progress(stage="work", done=step + 1, total=steps))


def compose(request: TrainRequest, name: str, text: str) -> Path:
    """A served adapter whose weights are `text`, with the identity that follows from it."""
    staging = store.staging(request.served, name)
    seed = int(content_id(text)[:6], 16)
    items = [
        {
            "prompt": f"prompt {i}",
            "token_ids": [seed + i + k for k in range(TOKENS)],
            "logprobs": [-0.1 * (k + 1) for k in range(TOKENS)],
            "base_token_ids": [7] * TOKENS,
            "base_logprobs": [-1.0] * TOKENS,
        }
        for i in range(2)
    ]
    (staging / "adapter_config.json").write_text(text)
    (staging / "identity.json").write_text(
        json.dumps({"version": 1, "max_tokens": TOKENS, "differs": True, "items": items})
    )
    return store.publish(
        staging, request.served, {}, lambda sha: f"palora-{request.number:06}-{sha[:8]}"
    )


def _sha(directory: Path) -> str:
    return str(store.read_manifest(directory)["sha256"])
