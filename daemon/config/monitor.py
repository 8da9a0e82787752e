"""[monitor]: questions that the alias is asked all day."""

from __future__ import annotations

from pydantic import Field

from daemon.config.sections import Section


class MonitorSettings(Section):
    """[monitor]: every replica's alias is asked what the live revision answered right in the gate;
    what falls short is trouble."""

    every_s: float = Field(default=0, ge=0)
    """How often a round is asked of every replica; 0: never."""
    facts: int = Field(default=10, ge=0)
    """Live facts asked in one round, drawn at random."""
    reasoning: int = Field(default=10, ge=0)
    """Items of the gate's reasoning suites asked in one round. A suite that is a `task`, or that a
    judge model grades, is not asked."""
    budget: int = Field(default=2000, ge=1)
    """Questions asked in 24 hours at most, over all replicas."""
    share: float = Field(default=0.7, gt=0, le=1)
    """A round falls short if a smaller share of the facts, or of the reasoning items, is answered
    right."""
    fail_after: int = Field(default=3, ge=1)
    """So many rounds in a row that fall short are trouble."""
    recover_after: int = Field(default=2, ge=1)
    """So many rounds in a row that do not are its end."""
    rollback: bool = False
    """Whether palorad rolls back by itself, to the revision before, when all replicas that answer
    fail. It does so once; if that does not help, it leaves the rest to a person."""
