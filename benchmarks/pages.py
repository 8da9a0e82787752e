"""Figures in documents: what stands between two markers is written by a benchmark."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def fill(page: Path, blocks: Mapping[str, str]) -> None:
    """Rewrite what stands between `<!-- figures: NAME -->` and `<!-- end -->`; raises KeyError."""
    text = page.read_text(encoding="utf-8")

    def block(found: re.Match[str]) -> str:
        return f"<!-- figures: {found[1]} -->\n{blocks[found[1]]}\n<!-- end -->"

    filled = re.sub(r"<!-- figures: (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)
    page.write_text(filled, encoding="utf-8")
