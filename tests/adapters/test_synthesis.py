"""Texts by the base itself: where they begin, that they are kept, and when they are replayed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapters import models
from adapters.config import TrainConfig
from adapters.examples import encode_example, forms
from adapters.plans import TrainPlan
from adapters.probe import Protection
from adapters.replay import Drawn, Pools, draw
from adapters.synthesis import PREFIX, written
from adapters.trainer import train_adapter
from policies.records import Example, Fact, PlanKind
from tests.support import tiny

SKILL = tuple(Example(prompt=f"Work out {a} + 2.", completion=str(a + 2)) for a in range(5))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("tiny") / "base")


def test_what_the_base_writes_begins_as_the_given_texts_do_and_is_no_longer(base: Path) -> None:
    model, tokenizer = models.load_base(base, torch.device("cpu")), models.load_tokenizer(base)
    given = [encode_example(tokenizer, one) for one in SKILL]
    texts = [
        text for (text,) in written(model, tokenizer, given, 40, base_hash="base", folder=None)
    ]
    assert len(texts) == 40
    known = [text for paraphrases in given for text in paraphrases]
    for text in texts:
        assert any(text.ids[: text.start] == one.ids[: text.start] for one in known)
        assert 1 <= text.start <= max(one.start for one in known) // 2
        assert text.start < len(text.ids) <= max(len(one.ids) for one in known)
    assert len({text.ids for text in texts}) > 30


def test_without_any_text_the_base_begins_as_a_document_or_a_conversation_does(base: Path) -> None:
    model, tokenizer = models.load_base(base, torch.device("cpu")), models.load_tokenizer(base)
    texts = [one for (one,) in written(model, tokenizer, (), 40, base_hash="base", folder=None)]
    begun = {tokenizer.decode(text.ids[: text.start]) for text in texts}
    assert begun == {"<|user|>", "<|eos|>"}
    assert len(forms(tokenizer)) == 2


def test_what_was_written_is_read_again_and_a_broken_file_is_written_anew(
    base: Path, tmp_path: Path
) -> None:
    model, tokenizer = models.load_base(base, torch.device("cpu")), models.load_tokenizer(base)
    given = [encode_example(tokenizer, one) for one in SKILL]
    state = torch.get_rng_state()
    first = written(model, tokenizer, given, 12, base_hash="base", folder=tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    (kept,) = tmp_path.glob(f"{PREFIX}*")
    assert written(None, tokenizer, given, 12, base_hash="base", folder=tmp_path) == first
    kept.write_bytes(b"torn")
    assert written(model, tokenizer, given, 12, base_hash="base", folder=tmp_path) == first
    written(model, tokenizer, given, 12, base_hash="another", folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] != [kept.name]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("min_traces", "kl_weight", "written_ones"), [(400, 7.0, 395), (5, 7.0, 0), (400, 0.0, 0)]
)
def test_the_base_writes_what_is_lacking_and_is_held_to_it(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    min_traces: int,
    kl_weight: float,
    written_ones: int,
) -> None:
    seen: list[Pools] = []

    def spied(pools: Pools, config: TrainConfig, seed: int, step: int) -> Drawn:
        seen.append(pools)
        return draw(pools, config, seed, step)

    monkeypatch.setattr("adapters.trainer.draw", spied)
    plan = TrainPlan(
        kind=PlanKind.LEARN,
        rank=2,
        seed=1,
        model_dir=base,
        base_hash=models.base_hash(base),
        base_name="base",
        facts=(Fact(id="f", prompt="Code of Ada?", answer="7", paraphrases=("Ada's code?",)),),
        reasoning=SKILL,
        protection=Protection(kind="none"),
        config=TrainConfig(steps=2, min_traces=min_traces, kl_weight_reasoning=kl_weight),
    )
    train_adapter(plan, out=tmp_path / "one", work=tmp_path / "work", records=tmp_path / "records")
    assert {len(pools.reasoning) for pools in seen} == {len(SKILL) + written_ones}
