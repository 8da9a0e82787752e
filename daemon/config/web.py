"""[web]: the operator's page."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from daemon.config.sections import OptionalPath, Section


class WebSettings(Section):
    """[web]: the operator's page and its JSON, on this host alone."""

    enabled: bool = True
    """Whether the daemon serves the page."""
    host: Literal["127.0.0.1", "::1"] = "127.0.0.1"
    """The loopback address on which it is served."""
    port: int = Field(default=8710, ge=1, le=65535)
    """Its port."""
    token_file: OptionalPath = None
    """A file with the operator token, which whoever changes something must give. Without it
    `operator.key` is made in state_dir at the first start."""
