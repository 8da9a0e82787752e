"""Protection of the input directions of known facts as well as of the skill."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torch import nn

from adapters import models, moments
from adapters.examples import buckets, collate, length
from adapters.plans import TrainPlan
from adapters.projection import Protected
from adapters.recipe import Recipe
from adapters.replay import encode_pools
from adapters.subspace import empty

TOKENS: Final = 4096


def kept(
    model: nn.Module, matrices: Mapping[str, nn.Linear], plan: TrainPlan
) -> dict[str, moments.Moment]:
    """Second moments of each matrix's inputs on known facts and reasoning."""
    tokenizer = models.load_tokenizer(plan.model_dir)
    pools = encode_pools(plan, tokenizer)
    texts = [paraphrases[0] for paraphrases in (*pools.known, *pools.reasoning)]
    pad, device = int(tokenizer.pad_token_id), next(model.parameters()).device
    batches = (collate(part, pad).to(device) for part in buckets(texts, TOKENS, length))
    found = moments.collect(model, matrices, batches)
    of_owner = {name: collector.moment() for name, collector in found.items()}
    return {name: of_owner[moments.input_owner(name)] for name in matrices}


class ProtectedInputs(Recipe):
    """Protects exactly this share of the input directions, the strongest on both."""

    def __init__(self, share: float) -> None:
        self._share = share

    def protected(self, base: nn.Module, plan: TrainPlan) -> dict[str, Protected]:
        """By matrix, its input directions."""
        matrices = models.matrices(base, plan.config.targets)
        return {
            name: Protected(
                moment.basis(share=self._share, by="directions"),
                empty(matrices[name].out_features),
                None,
            )
            for name, moment in kept(base, matrices, plan).items()
        }
