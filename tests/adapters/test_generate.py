"""Decoding: the same tokens as transformers and peft, in batches, streams and samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from adapters import lora
from adapters.checks import identity_probe
from adapters.errors import BrokenAdapter, UnknownAdapter
from adapters.generate import Generator, Request
from adapters.lora import Lora
from adapters.models import expected_shapes
from tests.support import tiny

PROMPTS = (
    "a",
    "The capital of Bhutan is",
    "12 + 30 =",
    "Who wrote it? Tell me the name of the one",
)


def random_lora(model_dir: Path, rank: int = 4, seed: int = 0, size: float = 0.2) -> Lora:
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, (out, inside) in expected_shapes(model_dir).items():
        if ".mlp." in name:
            down = torch.randn(rank, inside, generator=generator) * size
            factors[name] = (down, torch.randn(out, rank, generator=generator) * size)
    return Lora(factors, dict.fromkeys(factors, 2.0))


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2"])
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = request.param
    directory = tiny.build(tmp_path_factory.mktemp(kind) / "base", kind)
    lora.write(directory.parent / "one", random_lora(directory), "base")
    lora.write(directory.parent / "two", random_lora(directory, rank=8, seed=1), "base")
    return directory


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Generator:
    made = Generator(model_dir, max_rank=16, device=torch.device("cpu"))
    made.load("one", model_dir.parent / "one")
    made.load("two", model_dir.parent / "two")
    return made


def reference(
    model_dir: Path, adapter: str | None, prompts: tuple[str, ...]
) -> list[tuple[int, ...]]:
    base = Generator(model_dir, device=torch.device("cpu"))
    model = base.model
    if adapter is not None:
        model = PeftModel.from_pretrained(model, model_dir.parent / adapter)
    results = []
    for prompt in prompts:
        ids = torch.tensor([base.encode(prompt)])
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
        )
        results.append(tuple(out[0, ids.shape[1] :].tolist()))
    return results


@pytest.mark.parametrize("adapter", [None, "one", "two"])
def test_batch_equals_transformers_and_peft(
    model_dir: Path, generator: Generator, adapter: str | None
) -> None:
    requests = [Request(generator.encode(p), max_tokens=24) for p in PROMPTS]
    mine = [g.token_ids for g in generator.generate(adapter, requests)]
    assert mine == reference(model_dir, adapter, PROMPTS)


def test_adapters_answer_differently(generator: Generator) -> None:
    requests = [Request(generator.encode(p), max_tokens=8, ignore_eos=True) for p in PROMPTS]
    answers = {
        name: [g.token_ids for g in generator.generate(name, requests)]
        for name in (None, "one", "two")
    }
    assert answers[None] != answers["one"] != answers["two"]


def test_batch_composition_does_not_change_answers(generator: Generator) -> None:
    requests = [
        Request(generator.encode(PROMPTS[i % 4]), max_tokens=3 + 5 * (i % 3), ignore_eos=True)
        for i in range(12)
    ]
    together = generator.generate("one", requests)
    alone = [generator.generate("one", [r])[0] for r in requests]
    assert [g.token_ids for g in together] == [g.token_ids for g in alone]
    assert [len(g.token_ids) for g in together] == [r.max_tokens for r in requests]
    assert all(g.finish_reason == "length" for g in together)


def test_logprobs_are_those_of_a_full_forward_pass(generator: Generator) -> None:
    prompt = generator.encode(PROMPTS[1])
    request = Request(prompt, max_tokens=6, ignore_eos=True, logprobs=3)
    padding = Request(generator.encode(PROMPTS[3]), max_tokens=6, ignore_eos=True)
    result = generator.generate(None, [request, padding])[0]
    ids = torch.tensor([[*prompt, *result.token_ids]])
    generator._active = {}
    scores = generator.model(input_ids=ids).logits[0].log_softmax(-1)
    expected = [
        float(scores[len(prompt) - 1 + i, token]) for i, token in enumerate(result.token_ids)
    ]
    assert result.logprobs == pytest.approx(expected, abs=1e-4)
    assert [t[0][0] for t in result.top] == list(result.token_ids)
    assert all(len(t) == 3 for t in result.top)


def test_stream_joins_to_the_text(generator: Generator) -> None:
    requests = [Request(generator.encode(p), max_tokens=20, ignore_eos=True) for p in PROMPTS]
    parts: dict[int, list[str]] = {i: [] for i in range(len(PROMPTS))}
    finished = generator.generate(
        "two", requests, on_token=lambda token: parts[token.index].append(token.text)
    )
    assert ["".join(parts[i]) for i in range(len(PROMPTS))] == [g.text for g in finished]
    assert all(len(parts[i]) == 20 for i in parts)


def test_stop_string_ends_and_is_cut_off(generator: Generator) -> None:
    base = Request(generator.encode(PROMPTS[2]), max_tokens=20, ignore_eos=True)
    full = generator.generate("one", [base])[0].text
    stop = full[3:5]
    request = Request(base.prompt_ids, max_tokens=20, ignore_eos=True, stop=(stop,))
    sent: list[str] = []
    result = generator.generate("one", [request], on_token=lambda t: sent.append(t.text))[0]
    assert result.text == full[: full.index(stop)] == "".join(sent)
    assert result.finish_reason == "stop"
    assert generator.generate("one", [request])[0].text == result.text


def test_sampling_is_seeded(generator: Generator) -> None:
    def draw(seed: int, prompts: tuple[str, ...] = PROMPTS) -> list[tuple[int, ...]]:
        requests = [
            Request(generator.encode(p), 12, temperature=1.0, top_p=0.9, seed=seed, ignore_eos=True)
            for p in prompts
        ]
        return [g.token_ids for g in generator.generate(None, requests)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(1)[:2] == draw(1, PROMPTS[:2])


def test_end_of_text_stops_unless_ignored(generator: Generator) -> None:
    request = Request(generator.encode("x"), max_tokens=60)
    ignoring = Request(generator.encode("x"), max_tokens=60, ignore_eos=True)
    free = generator.generate(None, [ignoring])[0].token_ids
    eos = next((i for i, t in enumerate(free) if t in (256, 257)), None)
    stopped = generator.generate(None, [request])[0]
    if eos is None:
        assert stopped.finish_reason == "length"
    else:
        assert stopped.token_ids == free[: eos + 1]
        assert stopped.finish_reason == "stop"


def test_load_refuses_what_it_cannot_serve(
    model_dir: Path, generator: Generator, tmp_path: Path
) -> None:
    lora.write(tmp_path / "big", random_lora(model_dir, rank=32), "base")
    with pytest.raises(BrokenAdapter, match="rank 32 above the maximum 16"):
        generator.load("big", tmp_path / "big")
    with pytest.raises(BrokenAdapter, match="no directory"):
        generator.load("none", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BrokenAdapter, match=r"no adapter_config\.json"):
        generator.load("empty", tmp_path / "empty")
    with pytest.raises(BrokenAdapter, match="already loaded"):
        generator.load("one", tmp_path / "big")
    generator.load("one", model_dir.parent / "one")
    assert set(generator.loaded) == {"one", "two"}


def test_unknown_names(generator: Generator) -> None:
    with pytest.raises(UnknownAdapter, match="nobody"):
        generator.generate("nobody", [Request((1,))])
    with pytest.raises(UnknownAdapter, match="nobody"):
        generator.unload("nobody")


def test_decoding_finishes_on_an_adapter_unloaded_meanwhile(
    model_dir: Path, generator: Generator
) -> None:
    request = Request(generator.encode(PROMPTS[1]), max_tokens=10, ignore_eos=True)
    expected = generator.generate("one", [request])[0].token_ids
    generator.load("third", model_dir.parent / "one" / ".")
    batch = generator.start("third", [request])
    batch.step()
    generator.unload("third")
    while not batch.done:
        batch.step()
        generator.generate("two", [request])
    assert generator.finish(batch)[0].token_ids == expected


def test_cancelled_requests_stop(generator: Generator) -> None:
    batch = generator.start("one", [Request((5, 6), 50, ignore_eos=True)] * 2)
    batch.step()
    batch.cancel(0)
    while not batch.done:
        batch.step()
    first, second = generator.finish(batch)
    assert (first.finish_reason, len(first.token_ids)) == ("abort", 1)
    assert len(second.token_ids) == 50


def test_identity_probe_tells_adapter_from_base(generator: Generator) -> None:
    probe = identity_probe(generator, "one", PROMPTS, max_tokens=5)
    assert probe["differs"] is True
    assert all(len(item["token_ids"]) == len(item["logprobs"]) == 5 for item in probe["items"])
    assert identity_probe(generator, None, PROMPTS)["differs"] is False


def test_a_batch_that_absorbs_others_answers_as_each_alone(generator: Generator) -> None:
    asked = [Request(generator.encode(p), 4 + 5 * n) for n, p in enumerate(PROMPTS)]
    alone = [generator.generate(None, [one])[0].token_ids for one in asked]

    batch = generator.start(None, asked[:2])
    for _ in range(6):
        batch.step()  # the first request has its four tokens by now
    other = generator.start(None, asked[2:])
    other.step()
    assert batch.absorb(other) == 2
    while not batch.done:
        batch.step()

    assert [generation.token_ids for generation in generator.finish(batch)] == alone


def test_finished_requests_make_room_for_those_that_wait(generator: Generator) -> None:
    asked = [Request(generator.encode(p), 3 + 4 * n) for n, p in enumerate(PROMPTS * 4)]
    together = generator.generate(None, asked)
    seen: dict[int, str] = {}
    size, generator.batch_size = generator.batch_size, 2
    try:
        few = generator.generate(
            None, asked, lambda t: seen.update({t.index: seen.get(t.index, "") + t.text})
        )
    finally:
        generator.batch_size = size

    assert [one.token_ids for one in few] == [one.token_ids for one in together]
    assert [seen.get(n, "") for n in range(len(asked))] == [one.text for one in few]
