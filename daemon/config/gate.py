"""[gate]: what a candidate must show."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from daemon.config.sections import OptionalPath, Section, Url
from policies.gate import limits as presets
from policies.gate.grading import AUTO, JUDGE, check_name
from policies.gate.records import Role


class JudgeSettings(Section):
    """[gate.judge]: a model that grades answers, for suites whose grader is "judge"."""

    url: Url | None = None
    """Its OpenAI-compatible endpoint. Questions and answers are sent there."""
    model: str | None = None
    """The name under which it answers."""
    key_file: OptionalPath = None
    """A file with the bearer token to send, if the endpoint asks for one."""
    timeout_s: float = Field(default=60, gt=0)
    """How long one grade may take."""
    concurrency: int = Field(default=4, ge=1)
    """Grades asked at a time."""
    budget: int = Field(default=2000, ge=1)
    """Grades asked in one evaluation, at most; the answers beyond have none."""


class SuiteSettings(Section):
    """[[gate.suites]]: one set of questions."""

    name: str = Field(min_length=1)
    """The suite's name, as verdicts show it."""
    role: Role
    """What it measures: reasoning, locality (known facts of the base), retention (earlier facts),
    or drift (the loss on fixed text)."""
    path: OptionalPath = None
    """JSONL, one question per line; for drift one `{"text": "…"}` per line; with `task` a folder of
    your own task files."""
    task: str | None = None
    """A task of lm-evaluation-harness in place of a file; needs `palorad[lm-eval]`."""
    filter: str | None = None
    """Which of the task's filters counts; unset: the first."""
    grader: str = AUTO
    """How answers are compared: see [graders](gate.md#graders). "auto": by the grader that fits how
    the base answers, found when it is first measured."""
    max_tokens: int = Field(default=64, ge=1)
    """The longest answer, in tokens."""
    form: Literal["auto", "chat", "plain"] = "auto"
    """How a question is put: as a chat message, as plain text, or ("auto") as chat if the model has
    a chat template."""
    margin: float | None = Field(default=None, gt=0, lt=1)
    """The drop to rule out on this suite; unset: the margin of its role."""

    @property
    def _changed(self) -> set[str]:
        """The keys that have another value than their default: settings that were read once and are
        validated again have every key set."""
        fields = type(self).model_fields.items()
        return {name for name, field in fields if getattr(self, name) != field.default}

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        if self.role is Role.FACTS:
            raise ValueError(f'the suite "{self.name}": new facts are asked without a suite')
        if self.role is Role.DRIFT and (more := self._changed - {"name", "role", "path"}):
            raise ValueError(
                f'the suite "{self.name}": drift is the loss on the texts of a file (path), '
                f"limited by gate.drift; remove {', '.join(sorted(more))}"
            )
        if self.path is None and self.task is None:
            raise ValueError(f'the suite "{self.name}" needs a path, or a task of lm-eval')
        if self.filter is not None and self.task is None:
            raise ValueError(f'the suite "{self.name}" has a filter, which only a task can have')
        check_name(self.grader)
        return self


class GateSettings(Section):
    """[gate]: what a candidate must show."""

    preset: Literal["strict", "balanced", "fast"] = "balanced"
    """A named set of limits ([presets](gate.md#presets)). What is unset below is as there."""
    alpha: float | None = Field(default=None, gt=0, lt=0.5)
    """How often a candidate that is worse by the margin may pass. Unset: the preset's."""
    beta: float | None = Field(default=None, gt=0, lt=0.5)
    """How often a candidate that lost nothing may fail. Unset: the preset's."""
    reasoning_margin: float | None = Field(default=None, gt=0, lt=1)
    """The drop on a reasoning suite to rule out, relative to base and to live; 0.02 is 2 pp. Unset:
    the preset's."""
    retention_margin: float | None = Field(default=None, gt=0, lt=1)
    """The drop in accuracy on earlier facts to rule out. Unset: the preset's."""
    locality_margin: float | None = Field(default=None, gt=0, lt=1)
    """The drop in locality to rule out. Unset: the preset's."""
    stratum_loss: float | None = Field(default=None, gt=0, lt=1)
    """Share of one stratum (a batch of earlier facts, a family of problems) that may newly fail.
    Unset: the preset's."""
    retention_floor: float | None = Field(default=None, ge=0, le=1)
    """Accuracy on earlier facts that a candidate must reach, whatever the live revision answers; 0:
    no floor. Unset: the preset's."""
    learnt_share: float | None = Field(default=None, gt=0, le=1)
    """Share of the new facts that must be learnt. Unset: the preset's."""
    paraphrase_share: float | None = Field(default=None, gt=0, le=1)
    """Share of a fact's held-out paraphrases that must be answered correctly. Unset: the
    preset's."""
    drift: float | None = Field(default=None, gt=0)
    """Allowed rise of the loss on a drift suite, in nats per token. Unset: it is only reported."""
    held_out_paraphrases: int = Field(default=2, ge=1)
    """Held-out paraphrases asked of each new fact, at most."""
    earlier_facts: int = Field(default=300, ge=0)
    """Earlier facts that a candidate is asked, at most; spread over all batches."""
    facts_grader: str = AUTO
    """How answers to facts are compared: see [graders](gate.md#graders)."""
    facts_max_tokens: int = Field(default=48, ge=1)
    """The longest answer to a fact, in tokens."""
    blind_suites: Literal["inconclusive", "warn"] = "inconclusive"
    """What a suite that could show no loss makes of the verdict; "warn": it counts for nothing, and
    that is said."""
    judge: JudgeSettings = JudgeSettings()
    """[gate.judge]"""
    aa_sample: int = Field(default=100, ge=0)
    """Items of each suite that the base answers twice (A/A), to measure how stable it is; 0:
    none."""
    chunk: int = Field(default=256, ge=1)
    """How many items of a suite are asked before the gate judges it again."""
    revisions_per_draw: int = Field(default=10, ge=1)
    """How many revisions are judged on one random order of the items, before a new one is drawn."""
    suites: tuple[SuiteSettings, ...] = (
        SuiteSettings(
            name="reasoning",
            role=Role.REASONING,
            path=Path("models/palorad-mini/data/reasoning-gate.jsonl"),
            grader="final",
            max_tokens=160,
        ),
        SuiteSettings(
            name="known facts",
            role=Role.LOCALITY,
            path=Path("models/palorad-mini/data/locality.jsonl"),
            grader="normalised",
            max_tokens=24,
        ),
    )
    """[[gate.suites]]"""

    @property
    def limits(self) -> presets.GateLimits:
        """The preset with everything that was set beside it; a floor of 0 is none."""
        preset = presets.PRESETS[self.preset].model_dump()
        mine = {name: getattr(self, name, None) for name in preset}
        chosen = preset | {name: value for name, value in mine.items() if value is not None}
        return presets.GateLimits(**chosen | {"retention_floor": chosen["retention_floor"] or None})

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [suite.name for suite in self.suites]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f'two suites are called "{name}"')
        check_name(self.facts_grader)
        judged = [suite.name for suite in self.suites if suite.grader == JUDGE]
        judged += ["facts_grader"] if self.facts_grader == JUDGE else []
        if judged and not (self.judge.url and self.judge.model):
            raise ValueError(
                f'"{judged[0]}" is graded by a judge model: set gate.judge.url and gate.judge.model'
            )
        return self
