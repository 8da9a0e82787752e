"""Runs: a method, a protocol and a seed, with a key over every setting that counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from adapters.config import TrainConfig
from adapters.examples import FIRST
from benchmarks.learning.batches import FEW, Purpose
from benchmarks.learning.methods import EARLIEST_END, METHODS, Method
from policies.lineage import outgrown
from policies.records import content_id

RANK_BUDGET: Final = 128


@dataclass(frozen=True)
class Protocol:
    """How many batches of how many facts, and after which of them it is measured.

    With `contradicts` the facts are known ones whose answer has changed.
    """

    name: str
    batches: int
    facts: int
    measured: tuple[int, ...]
    contradicts: bool = False

    def begins(self, other: Protocol) -> bool:
        """Whether the other's stream continues this one's."""
        same = (self.facts, self.contradicts) == (other.facts, other.contradicts)
        beyond = tuple(number for number in other.measured if number > self.batches)
        return same and bool(beyond) and (*self.measured, *beyond) == other.measured


PROTOCOLS: Final = {
    p.name: p
    for p in (
        Protocol("one", 1, 48, (1,)),
        Protocol("ten", 10, 36, (1, 5, 10)),
        Protocol("forty", 40, 12, (1, 10, 20, 40)),
        # More facts than a model of 3 million parameters has room for, and hours of two cores.
        Protocol("long", 40, 36, (1, 5, 10, 20, 40)),
        Protocol("singles", 10, 1, (1, 10)),
        Protocol("hundreds", 1, 500, (1,)),
        Protocol("contradicting", 1, 48, (1,), contradicts=True),
    )
}


@dataclass(frozen=True)
class LearningRun:
    """Everything that a row of the results depends on."""

    base: str
    protocol: Protocol
    method: str
    seed: int
    purpose: Purpose
    rate: float | None = None
    examples: int | None = None
    problems: int = 400

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> LearningRun:
        """The run that a row is of."""
        named = {field.name: row[field.name] for field in fields(cls)}
        return cls(**{**named, "protocol": PROTOCOLS[row["protocol"]]})

    @property
    def named(self) -> dict[str, Any]:
        """What a row says of it: the protocol by its name."""
        return {**vars(self), "protocol": self.protocol.name}

    @property
    def key(self) -> str:
        """The run's name among the results: another for another setting of the method."""
        named = ", ".join(f"{name}={value!r}" for name, value in self.named.items())
        return content_id(f"Run({named})", json.dumps(self.settings))

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the method is set to, the product's own defaults too."""
        method = METHODS[self.method]
        trained = method.config(self.rate)
        # What changes nothing is left out: a setting that is new makes no older run another one.
        nothing = (
            {"large_run_facts", "steps_per_doubling"} if trained.steps_per_doubling == 0 else set()
        )
        nothing |= {"sub_steps"} if trained.sub_steps == 1 else set()
        nothing |= {"min_traces"} if trained.min_traces == 0 or not self.examples else set()
        # What the facts of a batch already say, or `auto_batch`.
        nothing |= {"paraphrases", "prefixed", "paraphrase_source", "reversed_questions"}
        nothing |= {"batch_preset"}
        usual = TrainConfig()
        nothing |= {
            name
            for name in ("orthogonal", "reference_rate")
            if getattr(trained, name) == getattr(usual, name)
        }
        nothing |= {"earliest_end"} if trained.earliest_end == EARLIEST_END else set()
        return {
            "train": trained.model_dump(mode="json", exclude=nothing),
            "protection": method.protection.model_dump(mode="json"),
            "lineage": method.lineage,
            **({"probe_traces": self.examples} if self.examples else {}),
            **({"prefixed": True} if method.prefixed else {}),
            **(
                {}
                if method.paraphrases == FEW
                else {"paraphrases": method.paraphrases, "first_texts": FIRST}
            ),
            **({} if method.lineage == "stack" else {"rank": method.rank or RANK_BUDGET}),
            **({"retrain_at": method.retrain_at} if self._retrains(method) else {}),
            **({"auto_batch": True} if self._has_large_runs(method, trained) else {}),
        }

    def _retrains(self, method: Method) -> bool:
        places = range(1, self.protocol.batches + 1)
        return method.retrain_at > 0 and any(from_scratch(method, self.protocol, n) for n in places)

    def _has_large_runs(self, method: Method, trained: TrainConfig) -> bool:
        large = self.protocol.facts > trained.large_run_facts
        return method.auto_batch and (large or self._retrains(method))


def from_scratch(method: Method, protocol: Protocol, number: int) -> bool:
    """Whether the `number`th batch and all before it are learnt from scratch: always with this
    lineage, else where the adapter has outgrown its beginning.

    The product first learns the batch by a warm start and then retrains; nothing of the former
    stays, so it is left out here.
    """
    if method.lineage == "from-scratch":
        return True
    began_with = protocol.facts
    for facts in range(2 * protocol.facts, protocol.facts * number + 1, protocol.facts):
        if outgrown(began_with, facts - began_with, method.retrain_at):
            began_with = facts
    return number > 1 and began_with == protocol.facts * number
