"""WikiBigEdit, zsRE and CounterFact as they come with LocFT (MIT licence), one edit a line.

The sets are not part of this repository: https://github.com/ICT-STAR/LocFT has them. A folder
with `wikibigedit.jsonl`, `zsre.jsonl` and `counterfact.jsonl` is given to the benchmark.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from policies.errors import ConfigError
from policies.records import Fact, content_id

Dataset = Literal["wikibigedit", "zsre", "counterfact"]
DATASETS: Final[tuple[Dataset, ...]] = ("wikibigedit", "zsre", "counterfact")
_NATURAL_QUESTION: Final = "nq question: "


@dataclass(frozen=True, slots=True)
class Edit:
    """A question with its new answer, the question in other words, and one that is not about it."""

    prompt: str
    answer: str
    subject: str
    rephrased: str
    near: str
    near_answer: str
    truth: str = ""
    """What was true before, where the set says it."""

    @property
    def fact(self) -> Fact:
        """The edit as a line of a dropped file: one paraphrase to learn, one held out."""
        return Fact(
            id=content_id(self.prompt, self.answer),
            prompt=self.prompt,
            answer=self.answer,
            subject=self.subject,
            eval_prompts=(self.rephrased,),
        )

    @property
    def statement(self) -> str:
        """Question and answer in one line, as retrieval finds it."""
        return f"{self.prompt} {self.answer}"


def read(folder: Path, dataset: Dataset) -> list[Edit]:
    """All edits of a set with one answer for each question. `ConfigError` names a broken line."""
    path = folder / f"{dataset}.jsonl"
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error}); see benchmarks/edits") from error
    found: dict[str, Edit] = {}
    for number, line in enumerate(lines, start=1):
        try:
            one = _edit(json.loads(line), dataset)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}, line {number}: no edit of {dataset}: {error!r}") from error
        found.setdefault(one.prompt.casefold(), one)
    return list(found.values())


def batches(edits: list[Edit], count: int, size: int, seed: int) -> list[list[Edit]]:
    """`count` batches of `size` edits, drawn by the seed; no question or subject comes twice.

    `ConfigError` where the set is too small.
    """
    order = random.Random(f"edits:{seed}").sample(edits, len(edits))
    drawn = _one_of_each_subject(order)
    try:
        return [[next(drawn) for _ in range(size)] for _ in range(count)]
    except StopIteration:
        raise ConfigError(f"the set has fewer than {count * size} subjects") from None


def _one_of_each_subject(order: list[Edit]) -> Iterator[Edit]:
    seen: set[str] = set()
    for edit in order:
        if edit.subject.casefold() not in seen:
            seen.add(edit.subject.casefold())
            yield edit


def _edit(row: dict[str, Any], dataset: Dataset) -> Edit:
    if dataset == "zsre":
        near = row["loc"].removeprefix(_NATURAL_QUESTION)
        return Edit(row["src"], row["alt"], row["subject"], row["rephrase"], near, row["loc_ans"])
    return Edit(
        row["prompt"],
        row["target_new"],
        row["subject"],
        row["rephrase_prompt"],
        row["locality_prompt"],
        row["locality_ground_truth"],
        row.get("ground_truth", ""),
    )
