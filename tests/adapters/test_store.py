"""What is published stays as it is, and what is broken is refused with its reason."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters import files, lora, models, store
from adapters.checks import check_adapter, require_sound
from adapters.errors import BrokenAdapter, StoreConflict
from adapters.examples import (
    FIRST,
    IGNORED,
    Encoded,
    Variants,
    buckets,
    collate,
    encode,
    encode_example,
    length,
    one_of,
)
from adapters.lora import Lora
from policies.records import Example, Fact
from tests.support import tiny


def make(folder: Path, text: str = "one") -> Path:
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text(text)
    (folder / "b").mkdir()
    (folder / "b" / "c.txt").write_text("two")
    return folder


def test_published_under_its_content_and_once(tmp_path: Path) -> None:
    first = store.publish(make(tmp_path / "x"), tmp_path / "out", {"parent": 3})
    manifest = store.read_manifest(first)
    assert first.name == manifest["sha256"][:12]
    assert manifest["parent"] == 3
    assert set(manifest["files"]) == {"a.txt", "b/c.txt"}
    assert store.verify(first) == ()
    again = store.publish(make(tmp_path / "y"), tmp_path / "out", {"parent": 9})
    assert again == first
    assert not (tmp_path / "y").exists()
    assert store.read_manifest(first)["parent"] == 3
    other = store.publish(make(tmp_path / "z", "else"), tmp_path / "out", {})
    assert other != first


def test_never_overwritten(tmp_path: Path) -> None:
    name: Callable[[str], str] = lambda _: "palora-000001"  # noqa: E731  # one word for a constant
    first = store.publish(make(tmp_path / "x"), tmp_path / "out", {}, name)
    with pytest.raises(StoreConflict, match="never overwritten"):
        store.publish(make(tmp_path / "y", "else"), tmp_path / "out", {}, name)
    assert (first / "a.txt").read_text() == "one"
    assert (tmp_path / "y").exists()
    (first / "a.txt").write_text("changed")
    with pytest.raises(StoreConflict):
        store.publish(make(tmp_path / "z"), tmp_path / "out", {}, name)


def test_every_change_is_found(tmp_path: Path) -> None:
    directory = store.publish(make(tmp_path / "x"), tmp_path / "out", {})
    (directory / "a.txt").write_text("changed")
    (directory / "b" / "c.txt").unlink()
    (directory / "new.txt").write_text("")
    assert set(store.verify(directory)) == {
        "a.txt has changed",
        "b/c.txt is missing",
        "new.txt was added",
    }
    (directory / "manifest.json").write_text("{")
    assert "no readable manifest" in store.verify(directory)[0]


@pytest.mark.parametrize("at", ["sync", "write_json", "rename"])
def test_cut_off_at_any_step_publishes_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    class CutOffError(Exception):
        pass

    def cut(*args: object) -> None:
        raise CutOffError

    with monkeypatch.context() as patch:
        if at == "rename":
            patch.setattr(Path, "rename", cut)
        else:
            patch.setattr(files, at, cut)
        with pytest.raises(CutOffError):
            store.publish(make(tmp_path / "x"), tmp_path / "out", {})
    published = list((tmp_path / "out").glob("*"))
    assert published == []
    done = store.publish(tmp_path / "x", tmp_path / "out", {})
    assert store.verify(done) == ()


def test_staging_starts_empty(tmp_path: Path) -> None:
    first = store.staging(tmp_path / "out", "plan-1")
    (first / "left over").write_text("")
    assert list(store.staging(tmp_path / "out", "plan-1").iterdir()) == []
    with pytest.raises(StoreConflict, match="nothing to publish"):
        store.publish(first, tmp_path / "out", {})


def test_nan_and_unreadable_tensors_are_no_sound_revision(adapter: Path, tmp_path: Path) -> None:
    edit_tensors(adapter, nan_in_one)
    (problem,) = store.verify(store.publish(adapter, tmp_path / "served", {}))
    assert "layers.1.mlp.up_proj" in problem and "NaN" in problem
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / lora.WEIGHTS).write_bytes(b"no tensors")
    (problem,) = store.verify(store.publish(tmp_path / "cut", tmp_path / "served", {}))
    assert "cannot be read" in problem


# --- checks ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    factors = {
        name: (torch.randn(4, shape[1]), torch.randn(shape[0], 4))
        for name, shape in models.expected_shapes(base).items()
        if ".mlp." in name
    }
    lora.write(tmp_path / "adapter", Lora(factors, dict.fromkeys(factors, 1.0)), "base")
    return tmp_path / "adapter"


def edit_config(adapter: Path, **changes: object) -> None:
    config = json.loads((adapter / lora.CONFIG).read_text())
    (adapter / lora.CONFIG).write_text(json.dumps(config | changes))


def edit_tensors(adapter: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(adapter / lora.WEIGHTS)
    save_file({k: change(k, t).contiguous() for k, t in tensors.items()}, adapter / lora.WEIGHTS)


def rename_keys(adapter: Path, old: str, new: str) -> None:
    tensors = load_file(adapter / lora.WEIGHTS)
    save_file({k.replace(old, new): t for k, t in tensors.items()}, adapter / lora.WEIGHTS)


def nan_in_one(key: str, tensor: torch.Tensor) -> torch.Tensor:
    if key.endswith("layers.1.mlp.up_proj.lora_A.weight"):
        tensor[0, 0] = float("nan")
    return tensor


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda a: (a / lora.CONFIG).unlink(), r"no adapter_config\.json"),
    "no weights": (lambda a: (a / lora.WEIGHTS).unlink(), r"no adapter_model\.safetensors"),
    "bad json": (lambda a: (a / lora.CONFIG).write_text("{"), "cannot be read"),
    "truncated": (
        lambda a: (a / lora.WEIGHTS).write_bytes((a / lora.WEIGHTS).read_bytes()[:-99]),
        "cannot be read",
    ),
    "nan": (lambda a: edit_tensors(a, nan_in_one), r"layers\.1\.mlp\.up_proj.*NaN"),
    "smaller hidden size": (
        lambda a: edit_tensors(a, lambda k, t: t[:, :-1] if "gate_proj.lora_A" in k else t),
        "size 31 where the base has 32",
    ),
    "rank differs": (lambda a: edit_config(a, r=8), "rank 4, the config says 8"),
    "rank above": (
        lambda a: (
            edit_tensors(
                a,
                lambda k, t: t.repeat(10, 1) if "lora_A" in k else t.repeat(1, 10),
            ),
            edit_config(a, r=40),
        ),
        "rank 40 is above the server's maximum 16",
    ),
    "prefix": (lambda a: rename_keys(a, "base_model.model.", "model."), "lora_A.weight or"),
    "extra layer": (
        lambda a: rename_keys(a, "layers.1.", "layers.7."),
        r"layers\.7.*no such matrix",
    ),
    "unknown module": (lambda a: rename_keys(a, "up_proj", "side_proj"), "no such matrix"),
    "base name": (
        lambda a: edit_config(a, base_model_name_or_path="other"),
        "names the base 'other', served is 'base'",
    ),
    "bias": (lambda a: edit_config(a, bias="all"), "bias"),
    "dora": (lambda a: edit_config(a, use_dora=True), "use_dora is set"),
    "rslora": (lambda a: edit_config(a, use_rslora=True), "use_rslora is set"),
    "no lora": (lambda a: edit_config(a, peft_type="IA3"), "peft_type is 'IA3'"),
    "half a pair": (
        lambda a: save_file(
            {
                k: t
                for k, t in load_file(a / lora.WEIGHTS).items()
                if "0.mlp.up_proj.lora_B" not in k
            },
            a / lora.WEIGHTS,
        ),
        "lora_B is missing",
    ),
    "does nothing": (
        lambda a: edit_tensors(a, lambda k, t: t * 0 if "lora_B" in k else t),
        "bare base",
    ),
    "no such target": (
        lambda a: edit_config(a, target_modules=["gate_proj", "up_proj"]),
        "down_proj has tensors but is no target",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_broken_adapter_has_its_reason(base: Path, adapter: Path, case: str) -> None:
    breaks, reason = BROKEN[case]
    breaks(adapter)
    with pytest.raises(BrokenAdapter, match=reason):
        require_sound(adapter, base, max_rank=16, base_name="base")


def test_sound_adapter_passes(base: Path, adapter: Path) -> None:
    assert check_adapter(adapter, base, max_rank=16, base_name="base") == ()


def test_manifest_is_compared_where_asked(base: Path, adapter: Path, tmp_path: Path) -> None:
    sha = models.base_hash(base)
    assert "manifest" in check_adapter(adapter, base, max_rank=16, base_hash=sha)[0]
    published = store.publish(adapter, tmp_path / "out", {"base_hash": "0" * 64})
    reasons = check_adapter(published, base, max_rank=16, base_hash=sha, verify_files=True)
    assert reasons == (f"made for the base 000000000000, this is {sha[:12]}",)
    (published / "added").write_text("")
    assert "added was added" in check_adapter(published, base, max_rank=16, verify_files=True)


def test_base_hash_follows_content_not_place(base: Path, tmp_path: Path) -> None:
    same = tiny.build(tmp_path / "same")
    assert models.base_hash(same) == models.base_hash(base)
    assert models.base_hash(tiny.build(tmp_path / "other", seed=1)) != models.base_hash(base)
    (same / "notes.md").write_text("not part of it")
    assert models.base_hash(same) == models.base_hash(base)


# --- examples ----------------------------------------------------------------------------------

FACT = Fact(
    id="f",
    prompt="What is it?",
    answer="Thimphu",
    paraphrases=("Name it:\n", "Say it."),
    eval_prompts=("Say it.", "Which one is it?"),
)


def test_the_first_texts_of_many_get_half_of_the_draws_and_every_text_some() -> None:
    texts = [Encoded((number,), 0) for number in range(2 * FIRST)]
    rng = random.Random(0)
    drawn = [one_of(texts, rng).ids[0] for _ in range(6000)]
    assert set(drawn) == set(range(2 * FIRST))
    # Half of them, and half of the other half.
    assert 0.72 < sum(number < FIRST for number in drawn) / len(drawn) < 0.78
    assert {one_of(texts[:1], rng) for _ in range(9)} == {texts[0]}


def test_loss_is_on_the_answer_only_and_held_out_paraphrases_are_never_read() -> None:
    tokenizer = tiny.tokenizer()
    texts = []
    for one in Variants(tokenizer, FACT):
        texts.append(
            (tokenizer.decode(one.ids[: one.start]), tokenizer.decode(one.ids[one.start :]))
        )
        assert one.key == "f"
    assert set(texts) == {
        ("What is it?", " Thimphu<|eos|>"),
        ("Name it:\n", "Thimphu<|eos|>"),
        ("<|user|>What is it?<|end|><|assistant|>", "Thimphu<|end|>"),
        ("<|user|>Name it:\n<|end|><|assistant|>", "Thimphu<|end|>"),
    }


def test_without_a_chat_template_only_plain() -> None:
    example = Example(prompt="1+1=", completion="2")
    assert len(encode_example(tiny.tokenizer(chat=False), example)) == 1
    assert len(encode_example(tiny.tokenizer(), example)) == 2


def test_prompt_that_fills_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="fills the 8 tokens"):
        encode(tiny.tokenizer(), "a prompt that is long", "x", "plain", limit=8)


def test_batches_are_padded_on_the_right_within_their_size() -> None:
    tokenizer = tiny.tokenizer()
    encoded = [encode(tokenizer, "p" * n, "a" * (n % 3 + 1), "plain") for n in range(1, 30)]
    groups = buckets(encoded, 64, length)
    assert sorted(len(one.ids) for group in groups for one in group) == sorted(
        len(one.ids) for one in encoded
    )
    for group in groups:
        batch = collate(group, pad_id=256)
        assert batch.ids.numel() <= 64
        for row, one in enumerate(group):
            learnt = (batch.labels[row] != IGNORED).nonzero()[:, 0].tolist()
            assert learnt == list(range(one.start, len(one.ids)))
            assert batch.ids[row, : len(one.ids)].tolist() == list(one.ids)
