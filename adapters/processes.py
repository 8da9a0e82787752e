"""One adapter trained by several processes: each reads a part of a step, the gradients are summed.

Every process holds the whole model and takes the same steps, so that any of them could go on alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import chain
from typing import Final, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor

from adapters import models
from adapters.examples import Encoded
from adapters.losses import Objective

PATIENCE: Final = timedelta(days=1)
"""How long one waits for another that lives: the daemon's own deadline is shorter."""


class StepFigures(NamedTuple):
    """What a step has shown: the loss per new token, each fact's own, whether to stop after it."""

    loss: float
    of_facts: Mapping[str, float]
    stopping: bool


@dataclass(frozen=True, slots=True)
class Processes:
    """How many processes train an adapter together, and which of them this is."""

    count: int = 1
    index: int = 0

    @staticmethod
    def joined() -> Processes:
        """Those that torchrun started this one with; returns once all are there.

        On GPUs each has its own (NCCL), on a CPU they share the cores (Gloo).
        """
        on_cpu = models.pick_device().type == "cpu"
        state = PartialState(cpu=on_cpu, timeout=PATIENCE)
        return Processes(state.num_processes, state.process_index)

    @staticmethod
    def leave() -> None:
        """Part from the others; nothing can be summed afterwards."""
        PartialState().destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the one that writes what they share."""
        return self.index == 0

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.count > 1:
            PartialState().wait_for_everyone()

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first process does the block alone; the others find what it has left on the disk."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def share(self, objective: Objective) -> Objective:
        """The texts of a step that this process reads, weighed as in the whole step.

        The gradients of all processes' shares sum up to those of `objective`.
        """
        if self.count == 1:
            return objective
        terms = objective.kl_terms
        parts = [objective.new, objective.replayed, *(term.texts for term in terms)]
        owners = iter(self._owners(list(chain.from_iterable(parts))))
        new, replayed, *of_terms = [
            [text for text in part if next(owners) == self.index] for part in parts
        ]
        return replace(
            objective,
            new=new,
            replayed=replayed,
            kl_terms=[
                replace(term, texts=own, weight=term.weight * _learnt(own) / _learnt(term.texts))
                for term, own in zip(terms, of_terms, strict=True)
                if own
            ],
            new_tokens=_learnt(objective.new),
        )

    def summed(self, factors: Iterable[Tensor], figures: StepFigures) -> StepFigures:
        """Give every factor the sum of all processes' gradients; the figures of the whole step."""
        if self.count == 1:
            return figures
        for factor in factors:
            own = torch.zeros_like(factor) if factor.grad is None else factor.grad
            factor.grad = reduce(own, "sum")
        found: list[StepFigures] = gather_object([figures])
        return StepFigures(
            sum(one.loss for one in found),
            dict(chain.from_iterable(one.of_facts.items() for one in found)),
            any(one.stopping for one in found),
        )

    def _owners(self, texts: Sequence[Encoded]) -> list[int]:
        """Which process reads each text, so that all read about as many tokens.

        One process reads a fact in all its paraphrases: its latest loss is then the same as where
        one reads everything.
        """
        whole: dict[str | int, list[int]] = {}
        for number, text in enumerate(texts):
            whole.setdefault(text.key or number, []).append(number)
        sizes = [(sum(len(texts[n].ids) for n in numbers), numbers) for numbers in whole.values()]
        owners = [0] * len(texts)
        read = [0] * self.count
        for size, numbers in sorted(sizes, key=lambda one: one[0], reverse=True):
            least = read.index(min(read))
            read[least] += size
            for n in numbers:
                owners[n] = least
        return owners


ALONE: Final = Processes()


def _learnt(texts: Iterable[Encoded]) -> int:
    return sum(len(one.ids) - one.start for one in texts)
