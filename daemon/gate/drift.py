"""How much higher a candidate's loss on fixed text is than base's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from daemon.gate.messages import ServedModel
from daemon.serving.protocol import Scorer

TOKENS: Final = 512

Encode = Callable[[str], Sequence[int]]


async def rise(
    server: Scorer,
    encode: Encode,
    texts: Sequence[str],
    *,
    base: ServedModel,
    candidate: ServedModel,
) -> float:
    """Rise of the loss in nats a token, over the first `TOKENS` tokens of every text.

    A text's first token is not counted, since nothing stands before it; nan where no text has a
    second. Raises `errors.ServerRefused` and `ServerUnreachable`.
    """
    cut = [ids for text in texts if len(ids := tuple(encode(text))[:TOKENS]) > 1]
    if not cut:
        return math.nan
    before = await _loss(server, base, cut)
    return await _loss(server, candidate, cut) - before


async def _loss(server: Scorer, model: ServedModel, texts: Sequence[Sequence[int]]) -> float:
    taken = [token.logprob for text in await server.score(model.name, texts) for token in text]
    return -math.fsum(taken) / len(taken)
