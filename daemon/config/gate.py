"""[gate]: what a candidate must show."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from daemon.config.sections import OptionalPath, Section
from policies.gate import limits as presets
from policies.gate.grading import grader
from policies.gate.records import Role


class SuiteSettings(Section):
    """[[gate.suites]]: one set of questions."""

    name: str = Field(min_length=1)
    """How the suite is called in verdicts."""
    role: Role
    """What it watches over: reasoning, locality (what the base knew), retention, or drift (the loss
    on fixed text)."""
    path: OptionalPath = None
    """JSONL, one question a line; for drift one `{"text": "…"}` a line; with `task` a folder of
    your own task files."""
    task: str | None = None
    """A task of lm-evaluation-harness instead of a file; needs `palorad[lm-eval]`."""
    filter: str | None = None
    """Which of the task's filters counts; without it the first."""
    grader: str = "normalised"
    """How answers are compared: see docs/gate.md."""
    max_tokens: int = Field(default=64, ge=1)
    """The longest answer."""
    form: Literal["auto", "chat", "plain"] = "auto"
    """Asked as a chat message, as plain text, or as chat where the model has a chat template."""
    margin: float | None = Field(default=None, gt=0, lt=1)
    """The drop to rule out on this suite; without it the margin of its role."""

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        if self.role is Role.FACTS:
            raise ValueError(f'the suite "{self.name}": new facts are asked without a suite')
        if self.role is Role.DRIFT and (more := self.model_fields_set - {"name", "role", "path"}):
            raise ValueError(
                f'the suite "{self.name}": drift is the loss on the texts of a file (path), '
                f"limited by gate.drift; remove {', '.join(sorted(more))}"
            )
        if self.path is None and self.task is None:
            raise ValueError(f'the suite "{self.name}" needs a path, or a task of lm-eval')
        if self.filter is not None and self.task is None:
            raise ValueError(f'the suite "{self.name}" has a filter, which only a task can have')
        return self


class GateSettings(Section):
    """[gate]: what a candidate must show."""

    preset: Literal["strict", "balanced", "fast"] = "balanced"
    """A named set of margins and error rates; see docs/gate.md."""
    alpha: float | None = Field(default=None, gt=0, lt=0.5)
    """How often a candidate that is worse by the margin may pass; without it, the preset's."""
    beta: float | None = Field(default=None, gt=0, lt=0.5)
    """How often a candidate that lost nothing may fail; without it, the preset's."""
    reasoning_margin: float | None = Field(default=None, gt=0, lt=1)
    """The drop on a reasoning suite to rule out, 0.02 is two points; without it, the preset's."""
    retention_margin: float | None = Field(default=None, gt=0, lt=1)
    """The drop on earlier facts to rule out; without it, the preset's."""
    locality_margin: float | None = Field(default=None, gt=0, lt=1)
    """The drop on facts that the base knew to rule out; without it, the preset's."""
    stratum_loss: float | None = Field(default=None, gt=0, lt=1)
    """The share of one batch or family that may newly fail; without it, the preset's."""
    retention_floor: float | None = Field(default=None, ge=0, le=1)
    """Recall of earlier facts that must be kept, 0 for none; without it, the preset's."""
    learnt_share: float | None = Field(default=None, gt=0, le=1)
    """Share of the new facts that must be learnt; without it, the preset's."""
    paraphrase_share: float | None = Field(default=None, gt=0, le=1)
    """Share of a fact's paraphrases that must be answered right; without it, the preset's."""
    drift: float | None = Field(default=None, gt=0)
    """Rise of the loss on the texts of a drift suite that is allowed, in nats a token; without it,
    the rise is only reported."""
    held_out_paraphrases: int = Field(default=2, ge=1)
    """Held-out paraphrases in which each new fact is asked, at most."""
    earlier_facts: int = Field(default=300, ge=0)
    """Earlier facts that a candidate is asked about at most, spread over all batches."""
    facts_grader: str = "normalised"
    """How answers to facts are compared."""
    facts_max_tokens: int = Field(default=48, ge=1)
    """The longest answer to a fact."""
    aa_sample: int = Field(default=100, ge=0)
    """Items of each suite on which the reference is measured twice, against itself."""
    chunk: int = Field(default=256, ge=1)
    """Items asked before the gate looks at a suite again."""
    revisions_per_draw: int = Field(default=10, ge=1)
    """Revisions whose candidates are asked the items in one order, before a new one is drawn."""
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
        grader(self.facts_grader)
        return self
