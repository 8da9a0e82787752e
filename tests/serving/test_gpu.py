"""One GPU for serving and training: what a child needs, what the driver says, what vLLM can."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adapters import memory
from daemon.config.settings import Settings
from daemon.serving import gpu, server_command
from daemon.serving.client import HttpServer
from daemon.serving.gpu import GIB, Memory, NoRoom
from policies.errors import ServerRefused, ServerUnreachable
from tests.serving.test_fleet import World
from tests.support.fake_vllm import ADMIN

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def configured(root: Path, **sections: Any) -> Settings:
    """Settings for a Llama 3.1 8B of which config.json alone is there."""
    (root / "config.json").write_text(json.dumps(LLAMA_8B))
    return Settings.model_validate({"model": {"path": root}, **sections})


# --- coresident -------------------------------------------------------------------------------


def test_training_needs_what_is_counted_for_its_settings_and_room(tmp_path: Path) -> None:
    settings = configured(tmp_path)
    model = memory.Model.of(LLAMA_8B)
    assert model is not None
    whole = memory.on_device(model, memory.Training(rank=128, device="cuda", share=0.2))
    assert gpu.needed_bytes(settings, probing=False) == 2 * GIB + whole.total
    assert gpu.needed_bytes(settings, probing=True) > 2 * GIB + whole.base + GIB


@pytest.mark.parametrize(
    "less",
    [
        {"protection": {"kind": "none"}},
        {"protection": {"share": 0.1}},
        {"train": {"rank_budget": 16}},
    ],
)
def test_less_protection_and_a_lower_rank_need_less(tmp_path: Path, less: dict[str, Any]) -> None:
    usual = gpu.needed_bytes(configured(tmp_path), probing=False)
    assert gpu.needed_bytes(configured(tmp_path, **less), probing=False) < usual - GIB


def test_a_soft_form_and_a_stack_need_more(tmp_path: Path) -> None:
    usual = gpu.needed_bytes(configured(tmp_path), probing=False)
    for more in ({"protection": {"form": "soft"}}, {"train": {"lineage": "stack"}}):
        assert gpu.needed_bytes(configured(tmp_path, **more), probing=False) > usual


def test_a_model_without_shapes_says_what_to_set_instead(tmp_path: Path) -> None:
    settings = configured(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NoRoom, match=r'hidden_size.*set gpu_sharing = "sleep" or "separate"'):
        gpu.needed_bytes(settings, probing=False)


def test_training_beside_the_server_is_refused_with_the_figures() -> None:
    gpu.require_room(4 * GIB, lambda: Memory(80 * GIB, 5 * GIB))
    with pytest.raises(NoRoom, match=r"about 9\.0 GiB .* 5\.0 of 80\.0 GiB are free"):
        gpu.require_room(9 * GIB, lambda: Memory(80 * GIB, 5 * GIB))


def test_without_a_driver_coresident_says_so() -> None:
    if server_command.has_gpu():
        pytest.skip("this machine has one")
    with pytest.raises(NoRoom, match="needs an NVIDIA driver"):
        gpu.read_memory({})


class FakeNvml:
    """Three GPUs: by number 0 to 2, by name, each with as many bytes free as its number."""

    NAMES = ("GPU-a", "GPU-b", "MIG-c")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = 0
        for name in dir(self):
            if name.startswith("nvml"):
                monkeypatch.setattr(gpu.pynvml, name, getattr(self, name))

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802 - NVML's name
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802 - NVML's name
        if index >= len(self.NAMES):
            raise gpu.pynvml.NVMLError_NotFound
        return index

    def nvmlDeviceGetHandleByUUID(self, name: str) -> int:  # noqa: N802 - NVML's name
        return self.NAMES.index(name)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802 - NVML's name
        return SimpleNamespace(total=10, free=handle, used=10 - handle)


@pytest.mark.parametrize(
    ("visible", "free"),
    [(None, 0), ("", 0), ("1", 1), ("2,0", 2), (" 1 ,2", 1), ("GPU-b", 1), ("MIG-c,GPU-a", 2)],
)
def test_the_gpu_that_is_asked_is_the_one_that_trains(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, free: int
) -> None:
    nvml = FakeNvml(monkeypatch)
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert gpu.read_memory(environment) == Memory(10, free)
    assert nvml.open == 0


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(monkeypatch)
    with pytest.raises(NoRoom, match="does not tell the GPU's memory") as raised:
        gpu.read_memory({"CUDA_VISIBLE_DEVICES": "7"})
    assert "\n" not in str(raised.value)
    assert nvml.open == 0


# --- sleep ------------------------------------------------------------------------------------


def test_only_vllm_can_be_told_to_sleep() -> None:
    with pytest.raises(ValueError, match='gpu_sharing "sleep" needs kind "vllm"'):
        Settings(state_dir=Path("s"), server={"gpu_sharing": "sleep"})
    Settings(state_dir=Path("s"), server={"gpu_sharing": "sleep", "kind": "vllm"})


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path, 1)
    assert made.ensure(made.revision(1)).done
    return made


def ask(world: World, work: Callable[[HttpServer], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        server = HttpServer("http://s", admin_key=ADMIN, transport=world.replicas[0].transport)
        try:
            return await work(server)
        finally:
            await server.aclose()

    return asyncio.run(run())


def test_a_sleeping_server_is_verified_by_ensure_before_anything_is_routed(world: World) -> None:
    first = world.revision(1)
    ask(world, lambda server: gpu.sleep(server, 1))
    (seen,) = asyncio.run(world.fleet.observe())
    assert (seen.healthy, seen.asleep, seen.active) == (True, True, None)
    assert "sleeps while palorad trains" in seen.reason
    result = world.ensure(first)
    assert not result.done
    assert not result.answering
    with pytest.raises(ServerUnreachable, match="sleeps while palorad trains"):
        asyncio.run(world.fleet.stage(first.served_name))
    ask(world, gpu.wake)
    with pytest.raises(ServerRefused, match="not verified on this server yet"):
        world.live()
    result = world.ensure(first)
    assert result.done
    assert any(step.startswith("verified") for step in result.steps)
    assert world.live() == ("1", first.served_name)
    (seen,) = world.fleet.statuses
    assert (seen.asleep, seen.reason) == (False, "")


def test_the_alias_is_asked_again_after_a_sleep_on_the_base_too(world: World) -> None:
    """What was checked before the sleep counts no more, although it is the same process."""
    base = world.revision(0)
    assert world.ensure(base).done
    ask(world, lambda server: gpu.sleep(server, 1))
    ask(world, gpu.wake)
    asked: list[str] = []
    world.replicas[0].heard = asked.append
    assert world.ensure(base).done
    assert "/v1/completions" in asked


def test_waking_is_idempotent_and_does_nothing_to_a_server_that_cannot_sleep(world: World) -> None:
    ask(world, gpu.wake)
    ask(world, lambda server: gpu.sleep(server, 1))
    ask(world, gpu.wake)
    ask(world, gpu.wake)
    assert not world.replicas[0].asleep
    world.replicas[0].can_sleep = False
    ask(world, gpu.wake)


@pytest.mark.parametrize(("routes", "flag", "level"), [(False, True, 0), (True, False, 1)])
def test_a_vllm_that_cannot_sleep_is_one_clear_line(
    world: World, routes: bool, flag: bool, level: int
) -> None:
    replica = world.replicas[0]
    replica.can_sleep, replica.sleep_mode = routes, flag
    words = re.escape("needs vLLM started with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1")
    with pytest.raises(NoRoom, match=words):
        ask(world, lambda server: gpu.require_sleep_mode(server, level))


def test_pausing_the_scheduler_needs_no_flag(world: World) -> None:
    world.replicas[0].sleep_mode = False
    ask(world, lambda server: gpu.require_sleep_mode(server, 0))
