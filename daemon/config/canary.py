"""[canary]: a share of the requests for the new revision before it takes all."""

from __future__ import annotations

from pydantic import Field

from daemon.config.sections import Section


class CanarySettings(Section):
    """[canary]: what passed the gate first answers a share of the requests, and goes live if that
    does no harm."""

    minutes: float = Field(default=0, ge=0)
    """How long it does; 0: what passed goes live at once."""
    share: float = Field(default=0.05, ge=0, le=0.5)
    """The share of the alias's requests that it answers, drawn at random; 0: only requests with the
    header `x-palorad-canary: always`."""
    slower: float = Field(default=1.5, ge=1)
    """It is withdrawn if its answers take more than this many times as long as the live
    revision's, in the mean."""
