"""[anchor]: where the signed head of the history goes beside the state directory."""

from __future__ import annotations

from typing import Literal

from daemon.config.sections import OptionalPath, Section, Url


class AnchorSettings(Section):
    """[anchor]: a copy of the signed head of the history, kept where palorad cannot change it."""

    file: OptionalPath = None
    """A file on another disk or host to which signed heads are appended; `palorad verify` compares
    the history with it."""
    webhook: Url | Literal[""] = ""
    """An address to which signed heads are posted as JSON; empty: nowhere."""
