"""The weights and a server over them give the same greedy answers; drawn ones are drawn anew."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from daemon.embedded.app import Embedded, build
from daemon.onboarding import asking
from daemon.onboarding.asking import LocalBase, ServedBase
from daemon.serving.client import HttpServer
from policies.errors import ServerUnreachable, ServerUnusable
from tests.support import tiny

PROMPTS = ["What is the capital of Peru?", "Who?", "Name a colour"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("model"))


@pytest.fixture
def served(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedBase]:
    app = build(Embedded(model))
    transport = httpx.ASGITransport(app=app)
    monkeypatch.setattr(asking, "HttpServer", partial(HttpServer, transport=transport))
    yield ServedBase("http://served", "base", model, None, 8)
    app.state.engine.stop()


def test_weights_and_server_answer_alike_and_a_cut_answer_is_told(
    model: Path, served: ServedBase
) -> None:
    local = LocalBase(model)
    mine, theirs = local.answer(PROMPTS, 12), served.answer(PROMPTS, 12)
    assert [reply and reply.text for reply in mine] == [reply and reply.text for reply in theirs]
    assert [reply and reply.cut for reply in mine] == [reply and reply.cut for reply in theirs]
    assert any(reply and reply.cut for reply in mine)
    assert local.engine != served.engine


def test_drawn_answers_differ_from_the_greedy_one_and_from_each_other(
    model: Path, served: ServedBase
) -> None:
    for base in (LocalBase(model), served):
        said = [[r and r.text for r in base.answer(PROMPTS, 12, sample)] for sample in (0, 1, 2)]
        assert said[0] != said[1] != said[2] != said[0]
        assert [r and r.text for r in base.answer(PROMPTS, 12, 1)] == said[1]


def test_a_checkpoint_with_other_weights_is_another_engine(model: Path, tmp_path: Path) -> None:
    assert LocalBase(tiny.build(tmp_path, seed=1)).engine != LocalBase(model).engine


def test_only_a_client_with_a_seed_draws() -> None:
    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        choice = {"message": {"content": "x"}, "finish_reason": "stop"}
        return httpx.Response(200, json={"model": "base", "choices": [choice]})

    async def chat(seed: int | None) -> None:
        transport = httpx.MockTransport(answer)
        server = HttpServer("http://served", transport=transport, seed=seed)
        await server.chat("base", "Who?", max_tokens=4)
        await server.aclose()

    asyncio.run(chat(None))
    asyncio.run(chat(5))
    assert [(body["temperature"], body.get("seed")) for body in bodies] == [(0, None), (1, 5)]


def test_a_server_that_answers_nothing_ends_it_with_what_it_said(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(422, text="no such route"))
    monkeypatch.setattr(asking, "HttpServer", partial(HttpServer, transport=transport))
    with pytest.raises((ServerUnusable, ServerUnreachable), match="http://served"):
        ServedBase("http://served", "base", model, None, 8).answer(PROMPTS, 4)
