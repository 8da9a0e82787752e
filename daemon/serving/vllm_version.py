"""Which versions of vLLM palorad can use."""

from __future__ import annotations

import re
from typing import Final

# Below 0.23 requests under way could decode with another adapter after one was loaded.
VLLM_AT_LEAST: Final = (0, 23)
VLLM_TESTED: Final = (0, 32)


def known_version(told: str) -> tuple[int, int] | None:
    """Major and minor number of what vLLM says of itself; None where they cannot be told."""
    found = re.match(r"(\d+)\.(\d+)", told)
    return (int(found[1]), int(found[2])) if found else None
