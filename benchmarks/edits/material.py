"""What a real base knows and can do: replayed, and asked before and after each batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from adapters import files
from adapters.generate import Generator
from adapters.models import base_hash
from adapters.probe_fit import ProbeConfig, fit_probe
from benchmarks.edits.sets import Edit
from daemon.onboarding.asking import BaseAnswer
from daemon.onboarding.known_facts import surely_known
from daemon.onboarding.questions import FactQuestion, shipped
from daemon.training.child import read_examples
from policies.onboarding.agreement import first_sentence
from policies.records import Example
from smol.known import say

RUNS: Final = Path("benchmarks/runs/edits")
REPLAYED: Final = 150
TOKENS: Final = 32
"""Of an answer, at most."""
COMPLETIONS: Final = ("Complete this sentence: {}", "How does this sentence go on? {}")
PROBED: Final = 400
ROUND: Final = 300
ENOUGH: Final = 700
"""Known facts after which no further rounds are asked: what is replayed, 500 that never are, and
some that name what is learnt."""


@dataclass(frozen=True, slots=True)
class Known:
    """A question that the base answers right in two paraphrases, the right answer as a label, and
    the base's own answer."""

    prompt: str
    label: str
    said: str


@dataclass(frozen=True, slots=True)
class SkillItem:
    """A problem of the base's skill with its answer."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class RealBase:
    """A checkpoint, its probe, and what is replayed and asked of it; see `prepare`."""

    name: str
    model_dir: Path
    sha256: str
    probe_dir: Path
    replay: tuple[Known, ...]
    far: tuple[Known, ...]
    """Never replayed."""
    traces: tuple[Example, ...]
    problems: tuple[SkillItem, ...]
    grader: str
    """Of the problems."""

    def known(self, form: str) -> tuple[Example, ...]:
        """What is replayed: the base's own first sentence ("own") or the bare answer ("label")."""
        return tuple(
            Example(
                prompt=one.prompt,
                completion=first_sentence(one.said) if form == "own" else one.label,
                kind="known",
            )
            for one in self.replay
        )

    def asked_far(self, learnt: Sequence[Edit], most: int) -> list[Known]:
        """Known questions that name no subject of what was learnt, `most` at most."""
        subjects = [edit.subject.casefold() for edit in learnt]
        found = [
            one for one in self.far if not any(name in one.prompt.casefold() for name in subjects)
        ]
        return found[:most]


def prepare(name: str, model_dir: Path, counterfact: Sequence[Edit], *, svf: bool) -> RealBase:
    """Everything about a base; asked once, kept in `benchmarks/runs/edits`.

    Known facts come from palorad's own questions and from what was true before the edits of
    CounterFact. Problems and traces are those in the model's own `data` folder. With `svf` the
    probe has SVF factors.
    """
    sha256 = base_hash(model_dir)
    folder = RUNS / f"{name}-{sha256[:12]}"
    kept = folder / "known.json"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(kept, json.dumps(_known(model_dir, counterfact), ensure_ascii=False))
    found = [Known(**row) for row in json.loads(kept.read_text("utf-8"))]
    traces, problems, grader = _skill(model_dir / "data")
    probe = folder / ("probe-svf" if svf else "probe")
    config = ProbeConfig() if svf else ProbeConfig(seeds=())
    fit_probe(model_dir, traces[:PROBED], probe, config)
    return RealBase(
        name=name,
        model_dir=model_dir,
        sha256=sha256,
        probe_dir=probe,
        replay=tuple(found[:REPLAYED]),
        far=tuple(found[REPLAYED:]),
        traces=traces,
        problems=problems,
        grader=grader,
    )


def _known(model_dir: Path, counterfact: Sequence[Edit]) -> list[dict[str, str]]:
    generator = Generator(model_dir)

    def ask(_stage: str, prompts: Sequence[str], _sample: int) -> list[BaseAnswer]:
        return say(generator, prompts, TOKENS)

    known = surely_known(ask, shipped())
    true = [edit for edit in counterfact if edit.truth]
    Random("edits: asked").shuffle(true)
    for first in range(0, len(true), ROUND):
        if len(known) >= ENOUGH:
            break
        known += surely_known(ask, [_completion(edit) for edit in true[first : first + ROUND]])
    rows = [
        {"prompt": fact.question.prompt, "label": fact.answers[0], "said": fact.said}
        for fact in known
    ]
    Random("edits: known").shuffle(rows)
    return rows


def _completion(edit: Edit) -> FactQuestion:
    """What was true before an edit, as a sentence to be completed."""
    prompt, again = (form.format(edit.prompt) for form in COMPLETIONS)
    return FactQuestion(prompt, again, (edit.truth,), "completion")


def _skill(data: Path) -> tuple[tuple[Example, ...], tuple[SkillItem, ...], str]:
    """Traces to replay and to probe, problems to ask, and how these are graded."""
    traces = tuple(read_examples(data / "skill.jsonl", "solution"))
    path, grader = data / "report.jsonl", "final"
    if not path.exists():
        path, grader = data / "reasoning-report.jsonl", "contains"
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return traces, tuple(SkillItem(row["prompt"], _answer(row)) for row in rows), grader


def _answer(row: dict[str, Any]) -> str:
    return str(row["answer"] if "answer" in row else row["answers"][0])
