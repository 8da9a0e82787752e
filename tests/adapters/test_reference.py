"""The base's predictions are found once, are right, and come back from their file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters import models, reference
from adapters.examples import Encoded, collate, encode_example
from adapters.losses import learnt_states, to_logits
from adapters.passes import Passes
from adapters.reference import Reference, record
from policies.records import Example
from tests.support import tiny

CPU = torch.device("cpu")


class Base:
    """A tiny base that counts how often it was asked to be the reference."""

    def __init__(self, folder: Path) -> None:
        directory = tiny.build(folder)
        self.model = models.load_base(directory, CPU)
        self.tokenizer = models.load_tokenizer(directory)
        self.pad = int(self.tokenizer.pad_token_id)
        self.entered = 0
        self.texts = [
            encode_example(self.tokenizer, Example(prompt=f"{n} is", completion="x" * n))[0]
            for n in (9, 1, 4, 4)
        ]

    @contextmanager
    def reference(self) -> Iterator[Any]:
        self.entered += 1
        yield self.model

    def record(self, texts: list[Encoded], folder: Path | None = None, **other: Any) -> Reference:
        options = {"base_hash": "b", **other}
        return record(
            self.model,
            self.reference,
            texts,
            Passes(CPU, self.pad, max_tokens=40),
            folder=folder,
            **options,
        )

    def states(self, texts: list[Encoded]) -> torch.Tensor:
        with torch.no_grad():
            return learnt_states(self.model, collate(texts, self.pad))[0]


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return Base(tmp_path / "base")


def test_each_text_gets_its_own_distributions_in_any_order(base: Base) -> None:
    found = base.record(base.texts)
    for chosen in ([2, 0], [1], [0, 1, 2, 3]):
        texts = [base.texts[n] for n in chosen]
        torch.testing.assert_close(found.states(texts), base.states(texts), rtol=1e-4, atol=1e-4)
    assert base.entered == 1


def test_entropy_is_that_of_the_learnt_tokens(base: Base) -> None:
    found = base.record(base.texts)
    most = math.log(base.model.config.vocab_size)
    for text in base.texts:
        logs = to_logits(base.model, base.states([text])).log_softmax(dim=-1)
        entropy = -(logs.exp() * logs).sum()
        assert found.entropy(text) == pytest.approx(float(entropy), rel=1e-4)
        assert 0 < float(entropy) <= most * (len(text.ids) - text.start) + 1e-4


def test_a_text_that_was_not_recorded_is_passed_through_the_base(base: Base) -> None:
    found = base.record(base.texts[:2])
    assert base.entered == 1
    torch.testing.assert_close(
        found.states(base.texts), base.states(base.texts), rtol=1e-4, atol=1e-4
    )
    assert base.entered == 2
    assert found.entropy(base.texts[2]) is None


def test_no_more_is_recorded_than_there_is_room_for(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = base.texts[0]
    room = (len(first.ids) - first.start) * base.model.config.hidden_size * 4
    monkeypatch.setattr(reference, "MOST_BYTES", room)
    found = base.record(base.texts)
    assert [found.entropy(text) is not None for text in base.texts] == [True, False, False, False]


def test_the_record_is_kept_and_belongs_to_its_texts_and_base(base: Base, tmp_path: Path) -> None:
    folder = tmp_path / "records"
    first = base.record(base.texts, folder).states(base.texts)
    again = base.record(base.texts, folder)
    assert base.entered == 1
    assert torch.equal(again.states(base.texts), first)
    for texts, other in ((base.texts[:3], {}), (base.texts, {"base_hash": "c"})):
        before = base.entered
        base.record(texts, folder, **other)
        assert base.entered == before + 1
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\x08" + b"\x00" * 40])
def test_a_broken_record_is_made_again(base: Base, tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "records"
    first = base.record(base.texts, folder).states(base.texts)
    (file,) = folder.iterdir()
    file.write_bytes(content)
    assert torch.equal(base.record(base.texts, folder).states(base.texts), first)
    assert base.entered == 2


def test_nothing_to_record(base: Base, tmp_path: Path) -> None:
    found = base.record([], tmp_path / "records")
    torch.testing.assert_close(
        found.states(base.texts), base.states(base.texts), rtol=1e-4, atol=1e-4
    )
    assert not (tmp_path / "records").exists()
