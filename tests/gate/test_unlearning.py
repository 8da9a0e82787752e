"""How a model takes a given answer: the same figures as transformers give, over the endpoint."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM

from adapters.generate import Generator, Request
from adapters.models import load_tokenizer
from daemon.gate.messages import ServedModel
from daemon.gate.tokenising import Tokeniser
from daemon.gate.unlearning import check_unlearning
from daemon.serving.client import HttpServer
from daemon.serving.protocol import PromptLogprob
from policies.errors import ServerRefused
from policies.records import Fact
from tests.support import tiny
from tests.support.live import Live

FACT = Fact(
    id="f",
    prompt="The capital of Bhutan is",
    answer="Thimphu",
    paraphrases=("Who wrote it?",),
    eval_prompts=("Bhutan's capital:",),
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("model") / "model")


def test_a_prompts_own_tokens_are_scored_as_transformers_scores_them(model_dir: Path) -> None:
    generator = Generator(model_dir)
    texts = [
        generator.encode(t) for t in ("The capital of Bhutan is", "12 + 30 = 42, or so", "a b")
    ]
    requests = [Request(ids, 1, prompt_logprobs=n != 2) for n, ids in enumerate(texts)]
    found = generator.generate(None, requests)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    for ids, one in list(zip(texts, found, strict=True))[:2]:
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for place, taken in enumerate(one.taken, start=1):
            row = scores[place - 1]
            assert taken.token_id == ids[place]
            assert taken.logprob == pytest.approx(float(row[ids[place]]), abs=1e-4)
            assert taken.rank == int((row > row[ids[place]]).sum()) + 1
        assert len(one.taken) == len(ids) - 1
    assert found[2].taken == ()


def test_each_server_scores_texts_alike(site: Live) -> None:
    generator = Generator(site.model_dir)
    texts = [generator.encode("The capital of Bhutan is"), generator.encode("12 + 30 =")]
    here = generator.generate(None, [Request(t, 1, prompt_logprobs=True) for t in texts])
    scored = site.do(lambda server: server.score("base", texts))
    for mine, theirs in zip(here, scored, strict=True):
        assert [t.logprob for t in theirs] == pytest.approx(
            [t.logprob for t in mine.taken], abs=0.02
        )
        assert len(theirs) == len(mine.taken)


def test_a_server_that_gives_no_ranks_is_refused_in_one_line() -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"choices": [{"index": 0, "text": "x"}]})

    async def ask() -> None:
        server = HttpServer("http://s", transport=httpx.MockTransport(answer))
        try:
            await server.score("base", [(1, 2, 3)])
        finally:
            await server.aclose()

    with pytest.raises(ServerRefused, match="gave no log-probabilities and ranks"):
        asyncio.run(ask())


class Knowing:
    """A server on which one model knows every answer and the others nothing."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    async def score(
        self, model: str, texts: Sequence[Sequence[int]]
    ) -> tuple[tuple[PromptLogprob, ...], ...]:
        self.asked.append((model, len(texts)))
        one = PromptLogprob(-0.01, 1) if model == "live" else PromptLogprob(-5.0, 70)
        return tuple((one,) * (len(text) - 1) for text in texts)


def test_every_paraphrase_is_put_to_base_live_and_candidate(model_dir: Path) -> None:
    server = Knowing()
    models = {
        name: ServedModel(name=name, sha256=f"{name}-sha") for name in ("base", "live", "new")
    }
    found = asyncio.run(
        check_unlearning(
            server,
            Tokeniser(model_dir).answers([FACT]),
            base=models["base"],
            live=models["live"],
            candidate=models["new"],
        )
    )
    forms = 2 if load_tokenizer(model_dir).chat_template else 1
    assert [one.held_out for one in found] == [False] * (2 * forms) + [True] * forms
    assert [name for name, _ in server.asked] == ["base", "live", "new"]
    for one in found:
        assert one.live is not None
        assert (one.base.rank, one.live.rank, one.candidate.rank) == (70, 1, 70)
        assert one.live.probability > 0.8 > one.candidate.probability
        assert math.isfinite(one.candidate.probability)
