"""What the evaluation child is given and what it hands back."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from policies.gate.baselines import Model
from policies.gate.grading import AUTO
from policies.gate.limits import GateLimits
from policies.gate.records import Role, Scorecard, Verdict
from policies.records import Fact, Record


class SuiteSource(Record):
    """One `[[gate.suites]]`: where its questions lie and how they are asked and graded.

    With `task` the questions are those of lm-evaluation-harness, `filter` names one of its filters
    and `path` a folder with task files of your own.
    """

    name: str
    role: Role
    path: Path | None = None
    task: str | None = None
    filter: str | None = None
    grader: str = AUTO
    max_tokens: int = Field(gt=0)
    form: Literal["auto", "chat", "plain"] = "auto"
    margin: float | None = Field(default=None, gt=0, lt=1)


class JudgeSource(Record):
    """The judge model: where it answers, under which name, and how many grades are asked of it."""

    url: str
    model: str
    key_file: Path | None = None
    timeout_s: float = Field(default=60, gt=0)
    concurrency: int = Field(default=4, gt=0)
    budget: int = Field(default=2000, gt=0)


class ServedModel(Record):
    """A model to ask: the name it is served under, and the hash of the bytes behind the name."""

    name: str
    sha256: str


class EvaluationRequest(Record):
    """One candidate to judge.

    `base` is the served checkpoint without adapters, `live` what answers under the alias now (None
    where that is base itself), `engine` what decodes. `earlier` holds the sample of
    `policies.gate.sampling.draw_earlier`, and all there are where `earlier_complete`; `standing`
    are all valid facts learnt before, or an even sample of many: a question of a suite of known
    facts to which they or the new ones give another answer is not asked. `superseded` are facts
    whose answers are no longer to be given, `unlearn` retracted facts that the candidate must not
    give away more than base does. `chat` says whether the model has a chat template. `trained_on`
    are the files whose questions training and the probe use: no suite may ask them. Requests with
    one `order` draw a suite's items alike, so that base and live need not answer others for each
    candidate.
    """

    engine: str
    base: ServedModel
    live: ServedModel | None
    candidate: ServedModel
    order: str
    suites: tuple[SuiteSource, ...]
    trained_on: tuple[Path, ...] = ()
    facts: tuple[Fact, ...] = ()
    earlier: tuple[tuple[str, Fact], ...] = ()
    earlier_complete: bool = False
    standing: tuple[Fact, ...] = ()
    superseded: tuple[Fact, ...] = ()
    superseded_complete: bool = False
    unlearn: tuple[Fact, ...] = ()
    chat: bool
    limits: GateLimits
    concurrency: int = Field(default=32, gt=0)
    chunk: int = Field(default=64, gt=0)
    facts_grader: str = AUTO
    facts_max_tokens: int = Field(default=48, gt=0)
    paraphrases: int = Field(default=2, gt=0)
    aa_sample: int = Field(default=0, ge=0)

    def served(self, model: Model) -> ServedModel | None:
        """The model in this part; None where no revision is live."""
        found: ServedModel | None = getattr(self, model)
        return found


class JudgingRequest(Record):
    """What the evaluation child needs besides: where the server is, where answers are kept
    (`answers`), and the checkpoint that is served (`model_dir`).

    The candidate and the live revision are loaded there already.
    """

    evaluation: EvaluationRequest
    url: str
    admin_key_file: Path | None = None
    user_key_file: Path | None = None
    request_timeout_s: float = Field(default=120, gt=0)
    judge: JudgeSource | None = None
    answers: Path
    model_dir: Path


class SuiteCard(Record):
    """What was seen of a suite on one base: its grader, why that one, and whether it is blind."""

    suite: str
    grader: str
    because: str = ""
    blind: str = ""
    sees: float | None = None


class EvaluationReport(Record):
    """The verdict, what it rests on (base, live where there is one, candidate), and seconds by
    suite."""

    verdict: Verdict
    scorecards: tuple[Scorecard, ...]
    seconds: dict[str, float]
