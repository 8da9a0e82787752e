"""What the gate asks for: margins and error rates, and three presets of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from pydantic import Field

from policies.gate.records import Role
from policies.gate.unlearning import UnlearningTolerance
from policies.records import Record

BlindSuites = Literal["inconclusive", "warn"]


class GateLimits(Record):
    """Thresholds of the gate, as fractions: 0.02 is 2 % or 2 pp."""

    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Probability, at most, of passing a candidate that is worse by the margin on some suite."""
    beta: float = Field(default=0.05, gt=0, lt=0.5)
    """Probability, at most, of failing a candidate that lost nothing, all suites together."""
    reasoning_margin: float = Field(default=0.02, gt=0, lt=1)
    """The drop on a reasoning suite that must be ruled out."""
    retention_margin: float = Field(default=0.05, gt=0, lt=1)
    """The drop on earlier facts that must be ruled out."""
    locality_margin: float = Field(default=0.05, gt=0, lt=1)
    """The drop on facts that the base knew that must be ruled out."""
    stratum_loss: float = Field(default=0.2, gt=0, lt=1)
    """A stratum (a batch, a family) that newly fails on more than this share fails its suite."""
    retention_floor: float | None = Field(default=0.8, gt=0, le=1)
    """Accuracy on earlier facts that must be kept, whatever the live revision answers."""
    learnt_share: float = Field(default=0.8, gt=0, le=1)
    """Share of the new facts that must be learnt for the batch to go live."""
    paraphrase_share: float = Field(default=0.5, gt=0, le=1)
    """Share of a fact's held-out paraphrases that must be answered right: then it is learnt."""
    drift: float | None = Field(default=None, gt=0)
    """Rise of the loss on fixed text, in nats per token, that is allowed; unset: only reported."""
    blind_suites: BlindSuites = "inconclusive"
    """What a suite that could show no loss makes of a verdict; "warn": nothing, but it is said."""
    unlearning: UnlearningTolerance = UnlearningTolerance()
    """How near to base a candidate must come on retracted facts."""

    def margin(self, role: Role) -> float:
        """The margin of a paired suite in this role."""
        margins = {
            Role.REASONING: self.reasoning_margin,
            Role.RETENTION: self.retention_margin,
            Role.LOCALITY: self.locality_margin,
        }
        return margins[role]


PRESETS: Final[Mapping[str, GateLimits]] = MappingProxyType(
    {
        "strict": GateLimits(
            alpha=0.01,
            beta=0.05,
            reasoning_margin=0.01,
            retention_margin=0.02,
            locality_margin=0.02,
            stratum_loss=0.1,
            retention_floor=0.9,
            learnt_share=0.95,
        ),
        "balanced": GateLimits(),
        "fast": GateLimits(
            alpha=0.1,
            beta=0.1,
            reasoning_margin=0.03,
            retention_margin=0.1,
            locality_margin=0.1,
            stratum_loss=0.3,
            retention_floor=None,
            learnt_share=0.75,
        ),
    }
)
