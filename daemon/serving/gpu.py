"""One GPU for serving and training: whether both fit, and vLLM's sleep and wake-up."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pynvml

from adapters import memory, probe_size
from daemon.config.settings import Settings
from daemon.serving.client import HttpServer
from daemon.serving.server_command import has_gpu
from policies.errors import PaloradError, ServerRefused, TooManyProcesses

GIB: Final = 1024**3
SLEEP_S: Final = 300.0
WAKE_S: Final = 120.0
ASK_S: Final = 30.0
ROOM: Final = 2 * GIB
"""For what CUDA itself takes, and gaps between tensors."""
PAUSED: Final = 0
WEIGHTS_OFFLOADED: Final = 1
VISIBLE: Final = "CUDA_VISIBLE_DEVICES"


class NoRoom(PaloradError):
    """Training does not fit beside the server on this GPU."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one GPU."""

    total: int
    free: int


def read_memory(environment: Mapping[str, str]) -> Memory:
    """What NVML says of the GPU that a child of a process with this environment computes on.

    `NoRoom` where there is no NVIDIA driver to ask, or no such GPU.
    """
    try:
        pynvml.nvmlInit()
        try:
            found = pynvml.nvmlDeviceGetMemoryInfo(_device(environment.get(VISIBLE, "")))
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError_LibraryNotFound as error:
        raise NoRoom(
            'gpu_sharing = "coresident" needs an NVIDIA driver (NVML is missing); '
            'set gpu_sharing = "separate"'
        ) from error
    except pynvml.NVMLError as error:
        raise NoRoom(
            f"the NVIDIA driver does not tell the GPU's memory ({error}); see what nvidia-smi says"
        ) from error
    return Memory(total=int(found.total), free=int(found.free))


def _device(visible: str) -> Any:  # noqa: ANN401 - NVML's handle has no type
    """The first visible GPU: NVML itself knows nothing of CUDA_VISIBLE_DEVICES."""
    first = visible.partition(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        return pynvml.nvmlDeviceGetHandleByUUID(first)
    return pynvml.nvmlDeviceGetHandleByIndex(int(first) if first.isdigit() else 0)


def training(settings: Settings, device: memory.Device) -> memory.Training:
    """How adapters are trained by these settings, as far as memory depends on it."""
    train, protection = settings.train, settings.protection
    stacked = train.lineage == "stack"
    return memory.Training(
        rank=train.rank if stacked else train.rank_budget,
        frozen=train.rank_budget - train.rank if stacked else 0,
        device=device,
        share=0.0 if protection.kind == "none" else protection.share,
        soft=protection.form == "soft",
    )


def places(environment: Mapping[str, str]) -> tuple[int, str] | None:
    """How many children of a process with this environment can train at once, and on what: one on
    each GPU that they see, else on each core. None where the NVIDIA driver does not tell.
    """
    if not has_gpu():
        return len(os.sched_getaffinity(0)), "cores"
    named = environment.get(VISIBLE)
    if named is not None:
        return len([one for one in named.split(",") if one.strip() not in ("", "-1")]), "GPUs"
    try:
        pynvml.nvmlInit()
        try:
            return int(pynvml.nvmlDeviceGetCount()), "GPUs"
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def require_places(processes: int, environment: Mapping[str, str]) -> None:
    """Raise `TooManyProcesses` where fewer than `processes` can train at once."""
    found = places(environment) if processes > 1 else None
    if found is not None and found[0] < processes:
        raise TooManyProcesses(processes, *found)


def needed_bytes(settings: Settings, *, probing: bool) -> int:
    """What a child needs beside the server, in bytes: `ROOM`, and what training takes on a GPU; to
    fit a probe, the base and the largest stage of the fit.

    `NoRoom` where the model's config has no shapes to count.
    """
    path = settings.model.path / "config.json"
    model = memory.Model.of(json.loads(path.read_text()))
    if model is None:
        raise NoRoom(
            f"{path} has not all of {', '.join(memory.COUNTED)} to count memory by: "
            'set gpu_sharing = "sleep" or "separate"'
        )
    parts = memory.on_device(model, training(settings, "cuda"))
    if not probing:
        return ROOM + parts.total
    return ROOM + parts.base + probe_size.need(model.shapes, settings.protection.share).fit_memory


def require_room(needed: int, read: Callable[[], Memory]) -> None:
    """Raise `NoRoom` with the figures unless `needed` bytes are free beside the server."""
    found = read()
    if found.free < needed:
        raise NoRoom(
            f"training needs about {needed / GIB:.1f} GiB beside the server, "
            f"{found.free / GIB:.1f} of {found.total / GIB:.1f} GiB are free: lower vLLM's "
            '--gpu-memory-utilization, or set gpu_sharing = "sleep" or "separate"'
        )


def sleep_level() -> int:
    """1: weights move to the host and the KV cache is given back. Without a GPU there is nothing
    to give back, and vLLM knows level 0 alone: the scheduler pauses.
    """
    return WEIGHTS_OFFLOADED if has_gpu() else PAUSED


async def require_sleep_mode(server: HttpServer, level: int) -> None:
    """Raise `NoRoom` where vLLM was not started so that it can sleep at `level`.

    `ServerUnreachable` or `ServerRefused` where it cannot say.
    """
    try:
        await is_sleeping(server)
        if level == PAUSED:
            return
        info = await server.get("/server_info?config_format=json", timeout_s=ASK_S)
    except ServerRefused as refused:
        if refused.status != 404:
            raise
        raise NoRoom(_cannot_sleep(server.url)) from refused
    config = info.get("vllm_config")
    model = config.get("model_config") if isinstance(config, dict) else None
    # Without the flag vLLM takes the request to sleep and gives nothing back.
    if isinstance(model, dict) and model.get("enable_sleep_mode") is False:
        raise NoRoom(_cannot_sleep(server.url))


async def is_sleeping(server: HttpServer) -> bool:
    """Whether vLLM itself says that it sleeps, at any level; `ServerRefused` 404 where it has no
    such route."""
    return bool((await server.get("/is_sleeping", timeout_s=ASK_S)).get("is_sleeping"))


async def sleep(server: HttpServer, level: int) -> None:
    """Finish what runs, then sleep; returns when memory is given back. Asleep already is success.

    From the first moment its users get 503, and after it nothing is routed until `Fleet.ensure`
    has verified it again.
    """
    await server.post(f"/sleep?level={level}&mode=wait", timeout_s=SLEEP_S)


async def wake(server: HttpServer) -> None:
    """Wake a server; one that is awake, or can never sleep, stays so."""
    try:
        await server.post("/wake_up", timeout_s=WAKE_S)
        asleep = await is_sleeping(server)
    except ServerRefused as refused:
        if refused.status != 404:
            raise
        return
    if asleep:
        raise ServerRefused(f"{server.url} was woken and sleeps still", status=503)


def _cannot_sleep(url: str) -> str:
    return (
        f'{url} cannot sleep: gpu_sharing = "sleep" needs vLLM started with '
        "--enable-sleep-mode and VLLM_SERVER_DEV_MODE=1"
    )
