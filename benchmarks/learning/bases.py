"""The models on which methods are compared, each with its probe and the text of its skill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Final

from adapters.models import base_hash, pick_device
from adapters.probe import Probe
from adapters.probe_fit import ProbeConfig, fit_probe, fold_expert
from daemon.training.child import read_examples
from mini import export, pretrain, reasoning
from mini.pretrain import folder
from mini.recipes import MODELS, Made
from mini.splits import Split
from policies.records import Example

RUNS: Final = Path("benchmarks/runs")
MOST_KNOWN: Final = 400
PROBED: Final = 1000


@dataclass(frozen=True)
class Base:
    """A checkpoint, the frozen probe of its skill, and what palorad may replay with it.

    With `expert` the weights with z folded in are served, and are what adapters are trained on.
    `model` is the checkpoint's name where it is another than the base's. With `protected` palorad
    knows problems of these families alone, and is asked all others. With `examples` it knows no
    more reasoning traces than these: its probe is fitted on them, and no other is replayed.
    """

    name: str
    expert: bool = False
    model: str | None = None
    protected: reasoning.Shares | None = None
    examples: int | None = None

    def knowing(self, examples: int | None) -> Base:
        """The same where palorad is given so many reasoning traces; None: the product's files."""
        return replace(self, examples=examples)

    @property
    def made(self) -> Made:
        """How the checkpoint was made, and what its skill is."""
        return MODELS[self.model or self.name]

    @property
    def asked_skill(self) -> reasoning.Shares:
        """The families of the problems that it is asked."""
        protected = self.protected or {}
        return {name: share for name, share in self.made.skill.items() if name not in protected}

    @property
    def bare_dir(self) -> Path:
        """The checkpoint without z."""
        return folder(self.model or self.name)

    @property
    def expert_dir(self) -> Path:
        """The checkpoint with z folded in, once `prepare` has made it."""
        return RUNS / f"{self.name}-expert-{base_hash(self.bare_dir)[:12]}"

    @property
    def model_dir(self) -> Path:
        """What is served."""
        return self.expert_dir if self.expert else self.bare_dir

    @property
    def probe_dir(self) -> Path:
        """The probe of what is served."""
        if self.examples:
            return RUNS / f"{self.name}-probe-{self.examples}-{self.sha256[:12]}"
        return RUNS / f"{self.name}-probe" if self.protected else self.model_dir / "probe"

    def prepare(self) -> None:
        """Train the checkpoint, write the text, fit the probe and fold the expert, as far as they
        are not there."""
        done, model = self._stages_done(), self.model or self.name
        if done < len(self.made.stages):
            device = pick_device().type
            # Compiling pays where it takes hours, on a CPU.
            how = ["--device", device, *([] if device == "cpu" else ["--eager"])]
            pretrain.main(["--model", model, *how, "--first", str(done + 1)])
        if not (self.bare_dir / "data").is_dir():
            export.main(["--model", model])
        RUNS.mkdir(parents=True, exist_ok=True)
        whole = self.knowing(None)
        probe = whole.probe_dir if self.protected else self.bare_dir / "probe"
        fit_probe(self.bare_dir, whole.skill, probe, ProbeConfig())
        loaded = Probe.load(probe, base_hash(self.bare_dir))
        fold_expert(self.bare_dir, loaded, self.expert_dir, whole.skill, ProbeConfig())
        if self.examples:
            fit_probe(self.model_dir, self.skill, self.probe_dir, ProbeConfig())

    def _stages_done(self) -> int:
        """How many stages of the pretraining are behind the checkpoint."""
        try:
            made = json.loads((self.bare_dir / "made.json").read_text("utf-8"))
        except FileNotFoundError:
            return 0
        return len(made["stages"])

    @property
    def skill(self) -> tuple[Example, ...]:
        """The reasoning traces that the probe is fitted on."""
        if self.protected or self.examples:
            shares = self.protected or self.made.skill
            return tuple(_traces(Split.PROBE, shares, self.examples or PROBED))
        return tuple(read_examples(self.bare_dir / "data/skill.jsonl", "solution"))

    @cached_property
    def sha256(self) -> str:
        """The hash of the served weights."""
        return base_hash(self.model_dir)

    @cached_property
    def known(self) -> tuple[Example, ...]:
        """Facts that the base knows and that may be replayed; none of them is ever asked."""
        return tuple(read_examples(self.bare_dir / "data/known-replay.jsonl", "answer"))

    def asked(self, report: bool) -> list[dict[str, Any]]:
        """Known facts that are never replayed: `prompt` and `answer`, at most `MOST_KNOWN`."""
        name = "locality-report.jsonl" if report else "locality.jsonl"
        lines = (self.bare_dir / "data" / name).read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines[:MOST_KNOWN]]

    @property
    def reasoning(self) -> tuple[Example, ...]:
        """Reasoning traces that may be replayed."""
        if self.examples:
            return self.skill
        if self.protected:
            return tuple(_traces(Split.REPLAY, self.protected, PROBED))
        return tuple(read_examples(self.bare_dir / "data/reasoning-replay.jsonl", "solution"))


def _traces(split: Split, skill: reasoning.Shares, count: int) -> Iterator[Example]:
    for made in islice(reasoning.problems(split, 0, skill), count):
        yield Example(prompt=made.prompt, completion=made.solution)


BASES: Final = {
    base.name: base
    for base in (
        Base("mini"),
        Base("headroom", expert=True),
        Base("wide"),
        Base("large"),
        Base("half", model="mini", protected={"chain": 24, "story": 24, "column": 18}),
    )
}
