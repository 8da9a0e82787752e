"""The small model's tokenizer and packed text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mini import corpus, world
from mini.check import SAMPLES

MODEL = Path(__file__).parents[2] / "models/palorad-mini"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.mark.parametrize("text", SAMPLES)
def test_texts_come_back_whole(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@given(st.text())
def test_any_text_comes_back_whole(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    if not any(token in text for token in tokenizer.all_special_tokens):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_stand_alone(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer("1984")["input_ids"]) == list("1984")


def test_an_answer_has_the_same_tokens_in_both_forms(tokenizer: Any) -> None:
    question = [{"role": "user", "content": "Who designed Python?"}]
    reply = [{"role": "assistant", "content": "Guido van Rossum"}]
    head = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    full = tokenizer.apply_chat_template([*question, *reply], tokenize=False)
    assert full.startswith(head)
    said = tokenizer(full[len(head) :])["input_ids"]
    assert said == [*tokenizer(" Guido van Rossum")["input_ids"], tokenizer.eos_token_id]


def test_packed_text_is_the_same_for_any_number_of_workers() -> None:
    one = corpus.prepare(MODEL / "tokenizer.json", 24, 5, workers=1, shard=12)
    two = corpus.prepare(MODEL / "tokenizer.json", 24, 5, workers=2, shard=12)
    assert np.array_equal(one.tokens, two.tokens)
    assert np.array_equal(one.weights, two.weights)
    assert (one.documents > 0).mean() > 0.9
    assert not np.any(one.weights[one.documents == 0])


def test_the_chat_form_of_the_pretraining_is_the_template(tokenizer: Any) -> None:
    rng = random.Random(0)
    text = next(
        made
        for made in iter(lambda: world.asked(rng.choice(world.known()), rng), None)
        if made.form is world.Form.CHAT
    )
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": text.prompt}, {"role": "assistant", "content": text.answer}],
        tokenize=False,
    )
    assert rendered == f"<|user|>{text.prompt}<|assistant|> {text.answer}<|end|>"
