"""Figures in documents: what stands between two markers is written by a benchmark."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

BLOCK = re.compile(r"<!-- figures: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def fill(page: Path, blocks: Mapping[str, str]) -> None:
    """Rewrite what stands between `<!-- figures: NAME -->` and `<!-- end -->`.

    Other benchmarks' blocks stay as they are; raises KeyError for a block that the page lacks.
    """
    text = page.read_text(encoding="utf-8")
    missing = set(blocks) - set(BLOCK.findall(text))
    if missing:
        raise KeyError(f"{page} has no place for {', '.join(sorted(missing))}")

    def block(found: re.Match[str]) -> str:
        name = found[1]
        content = blocks.get(name)
        return found[0] if content is None else f"<!-- figures: {name} -->\n{content}\n<!-- end -->"

    page.write_text(BLOCK.sub(block, text), encoding="utf-8")
