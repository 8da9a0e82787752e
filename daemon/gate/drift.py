"""How much less a candidate expects fixed text than the reference does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from daemon.gate.measuring import ServedModel
from daemon.serving.protocol import Scorer

TOKENS: Final = 512

Encode = Callable[[str], Sequence[int]]


async def rise(
    server: Scorer,
    encode: Encode,
    texts: Sequence[str],
    *,
    reference: ServedModel,
    candidate: ServedModel,
) -> float:
    """Rise of the loss in nats a token, over the first `TOKENS` tokens of every text.

    A text's first token is not counted, since nothing stands before it; nan where no text has a
    second. Raises `seams.ServerRefused` and `ServerUnreachable`.
    """
    cut = [ids for text in texts if len(ids := tuple(encode(text))[:TOKENS]) > 1]
    if not cut:
        return math.nan
    before = await _loss(server, reference, cut)
    return await _loss(server, candidate, cut) - before


async def _loss(server: Scorer, target: ServedModel, texts: Sequence[Sequence[int]]) -> float:
    taken = [token.logprob for text in await server.score(target.name, texts) for token in text]
    return -math.fsum(taken) / len(taken)
