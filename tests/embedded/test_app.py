"""The embedded server: the same tokens as transformers and peft, and fair under load."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adapters import lora
from adapters.decoding import Decoding
from adapters.generate import Generator, Request
from adapters.models import load_tokenizer
from daemon.embedded.app import Embedded, build, listening, main
from daemon.embedded.engine import Engine
from daemon.serving.alias import AdminGateway
from daemon.serving.pointer import Pointer, write
from policies.errors import ServerUnusable
from tests.support import live, tiny

ADMIN = {"x-palorad-admin-key": "admin-key-for-tests"}
PROMPTS = ("The capital of Bhutan is", "12 + 30 =", "a", "Who wrote that book? " * 4)


class Site:
    """The application in this process, over a tiny model with two adapters."""

    def __init__(self, root: Path) -> None:
        self.model_dir = tiny.build(root / "model")
        self.served = root / "served"
        for name, seed in (("one", 1), ("two", 2)):
            lora.write(self.served / name, live.random_lora(self.model_dir, seed, size=0.2), "base")
        (root / "admin.key").write_text(ADMIN["x-palorad-admin-key"])
        self.pointer = root / "alias.json"
        write(self.pointer, Pointer(alias="live", model="base", revision=0))
        gateway = AdminGateway(self.pointer, root / "admin.key", self.served)
        self.app: FastAPI = build(Embedded(self.model_dir, gateway=gateway))
        self.engine: Engine = self.app.state.engine

    def run(self, ask: Any) -> Any:
        async def inside() -> Any:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://s", headers=ADMIN, timeout=60
            ) as client:
                return await ask(client)

        return asyncio.run(inside())

    def tokens(self, model: str, prompts: tuple[str, ...], size: int = 16) -> list[list[int]]:
        body = {"model": model, "prompt": prompts, "max_tokens": size, "temperature": 0}
        extra = {"return_token_ids": True, "ignore_eos": True}

        async def ask(client: httpx.AsyncClient) -> Any:
            return (await client.post("/v1/completions", json=body | extra)).json()

        return [choice["token_ids"] for choice in self.run(ask)["choices"]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("embedded"))

    async def load(client: httpx.AsyncClient) -> None:
        for name in ("one", "two"):
            body = {"lora_name": name, "lora_path": str(made.served / name)}
            assert (await client.post("/v1/load_lora_adapter", json=body)).status_code == 200
            await client.post("/palorad/verified", json={"model": name})

    made.run(load)
    yield made
    made.engine.stop()


def reference(site: Site, adapter: str | None, prompt: str, size: int = 16) -> list[int]:
    """What transformers (and peft) generate greedily, alone and without our code."""
    tokenizer = load_tokenizer(site.model_dir)
    model = AutoModelForCausalLM.from_pretrained(site.model_dir, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, site.served / adapter)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=size,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    return [int(i) for i in out[0, ids.shape[1] :]]


@pytest.mark.parametrize("model", ["base", "one", "two", "live"])
def test_greedy_tokens_are_those_of_transformers_and_peft(site: Site, model: str) -> None:
    adapter: str | None = None if model == "base" else model
    if model == "live":
        write(site.pointer, Pointer(alias="live", model="two", revision=2))
        adapter = "two"
    expected = [reference(site, adapter, prompt) for prompt in PROMPTS]
    assert site.tokens(model, PROMPTS) == expected


def test_adapters_asked_at_once_do_not_mix(site: Site) -> None:
    alone = {model: site.tokens(model, PROMPTS) for model in ("base", "one", "two")}

    async def ask(client: httpx.AsyncClient) -> list[tuple[str, list[list[int]]]]:
        async def one(model: str) -> tuple[str, list[list[int]]]:
            body = {"model": model, "prompt": PROMPTS, "max_tokens": 16, "temperature": 0}
            extra = {"return_token_ids": True, "ignore_eos": True}
            answer = (await client.post("/v1/completions", json=body | extra)).json()
            return model, [choice["token_ids"] for choice in answer["choices"]]

        return await asyncio.gather(*(one(model) for model in [*alone] * 5))

    for model, tokens in site.run(ask):
        assert tokens == alone[model]


def test_a_short_question_is_answered_while_a_long_one_runs(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding is held after the long answer's first token until the short questions wait."""
    begun, go_on = threading.Event(), threading.Event()
    step = site.engine._step

    def held(running: Any) -> None:
        step(running)
        begun.set()
        go_on.wait(60)

    monkeypatch.setattr(site.engine, "_step", held)

    async def ask(client: httpx.AsyncClient) -> list[str]:
        order: list[str] = []

        async def one(name: str, model: str, size: int) -> None:
            body = {"model": model, "prompt": "go", "max_tokens": size, "ignore_eos": True}
            await client.post("/v1/completions", json=body)
            order.append(name)

        models = ("one", "two", "base")
        long = asyncio.create_task(one("long", "one", 400))
        assert await asyncio.to_thread(begun.wait, 60)
        short = [asyncio.create_task(one("short", model, 2)) for model in models]
        while sum(map(len, site.engine._waiting.values())) < len(models):  # noqa: ASYNC110
            await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(*short, long)
        return order

    assert site.run(ask) == ["short"] * 3 + ["long"]


def test_short_answers_of_a_batch_do_not_wait_for_the_long_one(site: Site) -> None:
    async def run() -> list[int]:
        done: list[int] = []
        requests = [
            Request((1, 2, 3), max_tokens=size, ignore_eos=True) for size in (300, 2, 300, 2)
        ]
        jobs = site.engine.submit("one", requests, stream=False)

        async def wait(i: int) -> None:
            await jobs[i].result()
            done.append(i)

        await asyncio.gather(*(wait(i) for i in range(4)))
        return done

    assert set(asyncio.run(run())[:2]) == {1, 3}


def test_of_a_long_queue_several_join_a_full_batch_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by one they would each cost a forward pass and a copy of the whole batch's cache."""
    monkeypatch.setattr("daemon.embedded.engine.ROWS", 10)
    monkeypatch.setattr("daemon.embedded.engine.GATHER_LIMIT_S", 60.0)
    joined: list[int] = []
    start = site.engine.generator.start

    def counted(adapter: str | None, requests: Sequence[Request], *, stream: bool) -> Decoding:
        joined.append(len(requests))
        return start(adapter, requests, stream=stream)

    monkeypatch.setattr(site.engine.generator, "start", counted)

    async def run() -> None:
        asked = [Request((1, 2, 3), max_tokens=20 + n, ignore_eos=True) for n in range(40)]
        jobs = site.engine.submit("one", asked, stream=False)
        results = [await job.result() for job in jobs]
        assert [len(r.token_ids) for r in results] == [20 + n for n in range(40)]

    asyncio.run(run())
    assert joined[0] == 10
    assert sum(joined) == 40
    assert all(count >= 2 for count in joined[1:-1])


def test_what_was_asked_before_an_unload_is_answered_after_it(tmp_path: Path, site: Site) -> None:
    generator = Generator(site.model_dir, device=torch.device("cpu"))
    engine = Engine(generator)
    engine.load("x", str(site.served / "one"))
    request = Request(generator.encode("go"), max_tokens=60, ignore_eos=True)
    (expected,) = generator.generate("x#1", [request])

    async def run() -> list[tuple[int, ...]]:
        jobs = [engine.submit("x", [request], stream=False)[0] for _ in range(6)]
        engine.unload("x")
        engine.load("x", str(site.served / "two"))
        return [(await job.result()).token_ids for job in jobs]

    assert asyncio.run(run()) == [expected.token_ids] * 6
    deadline = time.monotonic() + 5
    while set(generator.loaded) != {"x#2"} and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(generator.loaded) == {"x#2"}
    engine.stop()


def test_a_failing_batch_is_told_and_the_server_lives_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    async def ask(client: httpx.AsyncClient) -> None:
        body = {"model": "base", "prompt": "x", "max_tokens": 2}
        with monkeypatch.context() as patch:
            patch.setattr(site.engine.generator, "start", broken)
            failed = await client.post("/v1/completions", json=body)
        assert failed.status_code == 500
        assert "out of memory" in failed.json()["error"]["message"]
        assert (await client.post("/v1/completions", json=body)).status_code == 200

    site.run(ask)


def test_streamed_logprobs_are_those_of_the_whole_answer(site: Site) -> None:
    body = {"model": "one", "prompt": "x", "max_tokens": 5, "temperature": 0, "logprobs": 2}

    async def ask(client: httpx.AsyncClient) -> None:
        whole = (await client.post("/v1/completions", json=body)).json()["choices"][0]["logprobs"]
        stream = await client.post("/v1/completions", json={**body, "stream": True})
        chunks = [json.loads(e[6:]) for e in stream.text.split("\n\n")[:-2]]
        parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
        for key in ("tokens", "top_logprobs"):
            assert [v for part in parts for v in part[key]] == whole[key]
        assert len(whole["top_logprobs"][0]) == 2

    text = {"model": "live", "prompt": "x", "max_tokens": 5, "temperature": 0, "stream": True}

    async def by_alias(client: httpx.AsyncClient) -> None:
        stream = await client.post("/v1/completions", json=text)
        models = {json.loads(e[6:])["model"] for e in stream.text.split("\n\n")[:-2]}
        assert models == {"live"}

    site.run(ask)
    site.run(by_alias)


def test_bad_starts_give_one_clear_line(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--alias-file", "a", "--admin-key-file", "k", "--served-dir", "s"]
    (tmp_path / "empty").mkdir()
    for model, said in ((tmp_path / "none", "no model directory"), (tmp_path / "empty", "config")):
        assert main(["--model", str(model), *common]) == 1
        line = capsys.readouterr().err
        assert said in line
        assert line.count("\n") == 1
    taken = listening("127.0.0.1", 0)
    taken.listen(1)
    port = taken.getsockname()[1]
    arguments = ["--model", str(site.model_dir), "--port", str(port), *common]
    assert main(arguments) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
    with pytest.raises(ServerUnusable, match="not-a-host"):
        listening("not-a-host.invalid", 1)
    taken.close()
