"""How a batch of edits is learnt, or looked up: the product and its rivals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

from adapters.config import PALORA, STACKED, TrainConfig
from adapters.plans import TrainReport
from adapters.probe import Protection
from adapters.recipe import Recipe
from adapters.trainer import train_adapter
from benchmarks.edits.rivals import alphaedit, locft

Context = Literal["none", "oracle", "retrieved"]
ACTIVATIONS: Final = Protection()
NOTHING: Final = Protection(kind="none")
# What a step of the product replays, switched off.
ALONE: Final = {
    "replayed_per_step": 0,
    "known_per_step": 0,
    "reasoning_per_step": 0,
    "kl_weight": 0.0,
    "kl_weight_reasoning": 0.0,
}


@dataclass(frozen=True)
class EditMethod:
    """A method: what is learnt and replayed, what is protected, and how it is trained.

    `learns_from` is the label of an edit, or the sentence in which the base says it when it has the
    edit in its context. `known` is how known facts are replayed: in the base's own words, or by
    their label. `rates` are those among which it may choose on one batch of the selection seed, as
    multiples of the product's or, where a method trains by itself, of its authors' own.
    """

    description: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    protection: Protection = ACTIVATIONS
    lineage: Literal["warm-start", "stack"] = "warm-start"
    learns_from: Literal["label", "sentence"] = "label"
    known: Literal["own", "label"] = "own"
    context: Context = "none"
    learns: bool = True
    train: Callable[..., TrainReport] = train_adapter
    rates: tuple[float, ...] = (0.5, 1.0, 2.0)
    recipe: Callable[[], Recipe] = Recipe

    def config(self, rate: float | None) -> TrainConfig:
        """At a multiple of the product's rate; its own where that is None."""
        config = TrainConfig(**{"batch_preset": "small", **self.settings})
        if rate is None:
            return config
        return config.model_copy(update={"reference_rate": rate * config.reference_rate})

    @property
    def reads_svf(self) -> bool:
        """Whether its probe needs SVF factors, which take hours of a CPU to fit."""
        return "svf" in self.protection.kind

    @property
    def replays(self) -> bool:
        """Whether earlier edits, known facts and traces are given to it."""
        return bool(self.settings.get("replayed_per_step", 1))


_FIXED: Final = partial(EditMethod, rates=(), learns=False, protection=NOTHING)

METHODS: Final[Mapping[str, EditMethod]] = {
    "palorad": EditMethod(
        "the product: labels, known facts in the base's own words by KL", rates=()
    ),
    "sentences": EditMethod(
        "the product, learning the base's own sentence with the fact in it",
        learns_from="sentence",
        rates=(),
    ),
    "later end": EditMethod(
        "the product, which may end after half of its steps",
        {"earliest_end": 0.5},
        rates=(),
    ),
    "known by label": EditMethod(
        "the product, known facts as bare labels", known="label", rates=()
    ),
    "svf too": EditMethod(
        "the product, critical SVF components protected too",
        protection=Protection(kind="svf+activations"),
        rates=(),
    ),
    "palora": EditMethod(
        "the paper's: SVF components protected on both sides, orthogonal adapters, no replay",
        PALORA.model_dump(exclude_unset=True),
        Protection(kind="svf"),
        "stack",
    ),
    "plain LoRA": EditMethod("LoRA on the new facts alone", ALONE, NOTHING),
    "replay by label": EditMethod(
        "facts, known facts and traces from their labels",
        {"kl_weight": 0.0, "kl_weight_reasoning": 0.0},
        NOTHING,
        known="label",
    ),
    "replay in own words": EditMethod(
        "the same, known facts in the base's own words",
        {"kl_weight": 0.0, "kl_weight_reasoning": 0.0},
        NOTHING,
    ),
    "LocFT-BF": EditMethod(
        "one down projection fine-tuned on the new facts alone",
        ALONE,
        NOTHING,
        train=locft,
        rates=(0.2, 1.0, 5.0),
    ),
    "AlphaEdit": EditMethod(
        "down projections of the lower half edited in closed form, known inputs in the null space",
        protection=NOTHING,
        train=alphaedit,
        rates=(0.005, 0.05, 0.5),
    ),
    "stack": EditMethod(
        "the product's stack", STACKED.model_dump(exclude_unset=True), lineage="stack", rates=()
    ),
    "frozen": _FIXED("the base, no update"),
    "retrieval": _FIXED("the base, the edit that BM25 finds in its context", context="retrieved"),
    "oracle context": _FIXED("the base, the right edit in its context", context="oracle"),
}
