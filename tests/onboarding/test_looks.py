"""What a model and a server say of themselves, and what to change there."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from daemon.onboarding import model_look, server_look
from daemon.onboarding.model_look import UnfitModel
from policies.errors import ServerUnreachable
from tests.support.onboarding import HIDDEN, INTERMEDIATE, LAYERS, checkpoint

SHARE = 0.2
URL = "http://gpu:8000"


def test_a_model_tells_its_shape_without_being_loaded(tmp_path: Path) -> None:
    found = model_look.look(checkpoint(tmp_path / "m"), SHARE)
    assert (found.layers, found.hidden, found.intermediate) == (LAYERS, HIDDEN, INTERMEDIATE)
    assert found.parameters == LAYERS * HIDDEN * INTERMEDIATE
    assert (found.dtype, found.context, found.chat, found.rank) == ("BF16", 1024, True, 128)


def test_a_narrow_model_gets_the_largest_rank_that_has_room(tmp_path: Path) -> None:
    assert model_look.look(checkpoint(tmp_path / "m", hidden=64), SHARE).rank == 32


@pytest.mark.parametrize(
    ("lacks", "told"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no \\*.safetensors"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_what_a_model_lacks_is_named(tmp_path: Path, lacks: str, told: str) -> None:
    model = checkpoint(tmp_path / "m")
    (model / lacks).unlink()
    with pytest.raises(UnfitModel, match=told):
        model_look.look(model, SHARE)


def test_a_quantised_model_another_shape_and_a_broken_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnfitModel, match="quantised"):
        model_look.look(checkpoint(tmp_path / "q", quantization_config={}), SHARE)
    with pytest.raises(UnfitModel, match="shape of Llama"):
        model_look.look(checkpoint(tmp_path / "s", intermediate_size="wide"), SHARE)
    broken = checkpoint(tmp_path / "b")
    (broken / "model.safetensors").write_bytes(b"no such")
    with pytest.raises(UnfitModel, match="no safetensors file"):
        model_look.look(broken, SHARE)


def server(**routes: httpx.Response) -> httpx.Client:
    """A client whose server knows these routes, 404 elsewhere."""

    def answer(request: httpx.Request) -> httpx.Response:
        name = request.url.path.strip("/").replace("/", "_").replace("v1_", "")
        return routes.get(name, httpx.Response(404))

    return httpx.Client(transport=httpx.MockTransport(answer))


CARDS = {
    "data": [
        {"id": "old", "root": "/served/old", "parent": "llama"},
        {"id": "llama", "root": "/srv/llama", "parent": None},
    ]
}
BARE = {"health": httpx.Response(200), "models": httpx.Response(200, json=CARDS)}


def test_a_server_as_palorad_needs_it_needs_no_change() -> None:
    config = {"vllm_config": {"lora_config": {"max_lora_rank": 128}}}
    found = server_look.look(
        URL,
        None,
        server(
            **BARE,
            version=httpx.Response(200, json={"version": "0.32.0"}),
            load_lora_adapter=httpx.Response(401),
            palorad_ready=httpx.Response(503),
            server_info=httpx.Response(200, json=config),
        ),
    )
    assert (found.model, found.root, found.version) == ("llama", "/srv/llama", "0.32.0")
    assert (found.gateway, found.runtime_lora, found.rank) == (True, True, 128)
    assert list(found.changes(128)) == []


def test_a_bare_vllm_is_told_every_flag() -> None:
    found = server_look.look(
        URL, None, server(**BARE, version=httpx.Response(200, json={"version": "0.32.0"}))
    )
    told = " ".join(found.changes(128))
    for flag in (
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
        "--enable-lora",
        "--max-lora-rank 128",
        "--middleware palorad_alias.AliasMiddleware",
    ):
        assert flag in told
    assert "no vLLM" not in told


def test_a_small_rank_is_told_and_another_server_is_no_vllm() -> None:
    config = {"vllm_config": {"lora_config": {"max_lora_rank": 16}}}
    found = server_look.look(
        URL, None, server(**BARE, server_info=httpx.Response(200, json=config))
    )
    told = " ".join(found.changes(128))
    assert "--max-lora-rank is 16" in told
    assert "no vLLM" in told


def test_a_vllm_that_mixes_adapters_up_is_to_be_replaced() -> None:
    old = httpx.Response(200, json={"version": "0.22.1"})
    found = server_look.look(URL, None, server(**BARE, version=old))
    assert "before vLLM 0.23" in " ".join(found.changes(128))


def test_a_server_that_is_not_there_or_refuses_the_key_is_one_clear_line() -> None:
    with pytest.raises(ServerUnreachable, match="start it, or correct --server"):
        server_look.look(URL, None, server())
    closed = server(health=httpx.Response(200), models=httpx.Response(401))
    with pytest.raises(ServerUnreachable, match="--key"):
        server_look.look(URL, "wrong", closed)
