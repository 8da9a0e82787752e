from __future__ import annotations

from difflib import SequenceMatcher
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from demo.setup import MODEL
from mini import alignment, world

COUNT = 12


@pytest.fixture(scope="module")
def batch() -> alignment.Pairs:
    return next(alignment.pairs(MODEL / "tokenizer.json", COUNT, seed=3))


def texts(batch: alignment.Pairs) -> list[str]:
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    rows = zip(batch.tokens, batch.last, strict=True)
    return [tokenizer.decode(row[: last + 1], skip_special_tokens=True) for row, last in rows]


def test_pairs_are_seeded_and_two_paraphrases_of_one_subject(batch: alignment.Pairs) -> None:
    again = next(alignment.pairs(MODEL / "tokenizer.json", COUNT, seed=3))
    assert np.array_equal(batch.tokens, again.tokens)
    assert batch.tokens.shape == (2 * COUNT, alignment.LENGTH)
    said = texts(batch)
    for one, other in zip(said[:COUNT], said[COUNT:], strict=True):
        a, b = one.casefold(), other.casefold()
        shared = SequenceMatcher(None, a, b, autojunk=False).find_longest_match()
        assert a != b
        assert shared.size >= 3, (one, other)


def test_pairs_ask_about_no_fact_of_the_world() -> None:
    known = {fact.subject.casefold() for fact in world.known()}
    stream = alignment.pairs(MODEL / "tokenizer.json", COUNT, seed=4)
    asked = [text for made in islice(stream, 20) for text in texts(made)]
    about = [text for text in asked if any(f" {subject}" in text.casefold() for subject in known)]
    assert len(about) < len(asked) / 10  # short names occur within longer ones


class Body:
    """A decoder whose inner states are given."""

    def __init__(self, states: torch.Tensor) -> None:
        self.states = states

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> Any:
        spread = self.states[:, None].expand(-1, input_ids.shape[1], -1)
        return SimpleNamespace(hidden_states=[spread] * 5)


def test_the_loss_falls_where_paraphrases_meet_and_questions_stay_apart(
    batch: alignment.Pairs,
) -> None:
    own = torch.eye(COUNT)
    device = torch.device("cpu")
    met = alignment.loss(Body(torch.cat([own, own])), batch, device)
    apart = alignment.loss(Body(torch.eye(2 * COUNT)), batch, device)
    collapsed = alignment.loss(Body(torch.ones(2 * COUNT, COUNT)), batch, device)
    assert met < 0.01
    assert met < apart
    assert torch.isclose(collapsed, torch.tensor(2 * COUNT - 1).log(), atol=1e-3)
