"""What a new user brings: a model that palorad has never seen, a log of requests, and problems."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from demo.scenario import MINI

NAME: Final = "gazelle"
_CHECKPOINT: Final = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def newcomer(folder: Path) -> None:
    """`models/gazelle`, which is palorad-mini without its data and its probe; `requests.jsonl`,
    what its users have asked as a server logs it; `problems.jsonl`, with their answers.
    """
    model = folder / "models" / NAME
    model.mkdir(parents=True)
    for name in _CHECKPOINT:
        shutil.copy(MINI.model / name, model / name)
    asked = [row for name in ("locality", "known-replay") for row in _rows(name)]
    _write(
        folder / "requests.jsonl",
        (
            {
                "model": NAME,
                "messages": [{"role": "user", "content": row["prompt"]}],
                "temperature": 0,
            }
            for row in asked
        ),
    )
    _write(
        folder / "problems.jsonl",
        (
            {key: row[key] for key in ("prompt", "answer", "family")}
            for row in _rows("reasoning-gate")
        ),
    )


def _rows(name: str) -> list[dict[str, str]]:
    text = (MINI.data / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def _write(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
