"""What the frozen reference says is found once, is right, and comes back from its file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from adapters import models
from adapters.examples import Encoded, collate, encode_example
from adapters.losses import learnt_logits
from adapters.reference import TOP, Reference, record
from policies.records import Example
from tests import tiny

CPU = torch.device("cpu")
T = 2.0


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
        options = {"temperature": T, "max_tokens": 40, "base_hash": "b", **other}
        return record(self.reference, texts, pad=self.pad, device=CPU, folder=folder, **options)

    def logits(self, texts: list[Encoded]) -> torch.Tensor:
        with torch.no_grad():
            return learnt_logits(self.model, collate(texts, self.pad))[0]


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return Base(tmp_path / "base")


def test_each_text_gets_its_own_distributions_in_any_order(base: Base) -> None:
    reference = base.record(base.texts)
    for chosen in ([2, 0], [1], [0, 1, 2, 3]):
        texts = [base.texts[n] for n in chosen]
        logs = F.log_softmax(base.logits(texts) / T, dim=-1)
        said = reference.of(texts)
        assert said.ids.shape == (logs.shape[0], min(TOP, logs.shape[1] - 1))
        kept = logs.gather(1, said.ids.long())
        torch.testing.assert_close(said.logs[:, :-1].float(), kept, rtol=2e-3, atol=2e-3)
        assert bool((kept.min(dim=1).values >= logs.topk(said.ids.shape[1]).values[:, -1]).all())
        torch.testing.assert_close(
            said.logs.float().exp().sum(dim=1), torch.ones(len(logs)), rtol=0, atol=5e-3
        )
    assert base.entered == 1


def test_the_divergence_is_zero_at_the_reference_and_grows_away_from_it(base: Base) -> None:
    said = base.record(base.texts).of(base.texts)
    logits = base.logits(base.texts)
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    exact = [
        float(
            F.kl_div(
                F.log_softmax((logits + size * noise) / T, dim=-1),
                F.log_softmax(logits / T, dim=-1),
                reduction="sum",
                log_target=True,
            )
        )
        for size in (0.0, 0.5, 2.0)
    ]
    found = [float(said.divergence(logits + size * noise, T)) for size in (0.0, 0.5, 2.0)]
    assert abs(found[0]) < 2e-2
    assert found[0] < found[1] < found[2]
    # Merging outcomes can only lose divergence (the data-processing inequality).
    assert all(f <= e + 2e-2 for f, e in zip(found, exact, strict=True))


def test_doubt_is_the_entropy_of_what_is_learnt(base: Base) -> None:
    long, short = base.record(base.texts).doubt(base.texts[:2])
    most = math.log(base.model.config.vocab_size)
    sizes = [len(text.ids) - text.start for text in base.texts[:2]]
    assert 0 < short < long <= most * sizes[0] + 1e-4
    assert short <= most * sizes[1] + 1e-4


def test_a_text_that_was_not_recorded_is_asked_now(base: Base) -> None:
    reference = base.record(base.texts[:2])
    before = base.entered
    whole = base.record(base.texts).of(base.texts)
    said = reference.of(base.texts)
    assert base.entered == before + 2
    torch.testing.assert_close(said.logs.float(), whole.logs.float(), rtol=2e-3, atol=2e-3)


def test_the_record_is_kept_and_belongs_to_its_texts_and_base(base: Base, tmp_path: Path) -> None:
    folder = tmp_path / "records"
    first = base.record(base.texts, folder).of(base.texts)
    again = base.record(list(reversed(base.texts)), folder)
    assert base.entered == 1
    assert torch.equal(again.of(base.texts).logs, first.logs)
    for texts, other in (
        (base.texts[:3], {}),
        (base.texts, {"base_hash": "c"}),
        (base.texts, {"temperature": 1.0}),
    ):
        before = base.entered
        base.record(texts, folder, **other)
        assert base.entered == before + 1
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\x08" + b"\x00" * 40])
def test_a_broken_record_is_found_anew(base: Base, tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "records"
    first = base.record(base.texts, folder).of(base.texts)
    (file,) = folder.iterdir()
    file.write_bytes(content)
    assert torch.equal(base.record(base.texts, folder).of(base.texts).logs, first.logs)
    assert base.entered == 2


def test_nothing_to_record(base: Base, tmp_path: Path) -> None:
    reference = base.record([], tmp_path / "records")
    assert reference.doubt([]) == []
    assert not (tmp_path / "records").exists()
