"""One GPU for serving and training: whether both fit, or vLLM sleeps meanwhile."""

from __future__ import annotations

import ctypes
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from daemon.serving.client import HttpServer
from policies.errors import PaloradError, ServerRefused

GIB = 1024**3
SLEEP_S = 300.0
WAKE_S = 120.0


class NoRoom(PaloradError):
    """Training does not fit beside the server on this GPU."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one GPU."""

    total: int
    free: int


def read_memory(index: int = 0) -> Memory:
    """What NVML says of one GPU; `NoRoom` where there is no NVIDIA driver to ask."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        raise NoRoom(
            'gpu_sharing = "coresident" needs an NVIDIA driver (libnvidia-ml.so.1 is missing); '
            'set gpu_sharing = "separate"'
        ) from error
    # nvmlMemory_t: total, free, used (NVML API reference, device queries).
    numbers = (ctypes.c_ulonglong * 3)()
    handle = ctypes.c_void_p()
    try:
        _ok(nvml.nvmlInit_v2())
        _ok(nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)))
        _ok(nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(numbers)))
    finally:
        nvml.nvmlShutdown()
    return Memory(total=int(numbers[0]), free=int(numbers[1]))


def training_bytes(model_dir: Path, batch_tokens: int = 8192) -> int:
    """What training beside a server needs at least: the base in bf16, activations, 2 GiB of room.

    Activations are counted as 34 bytes for every token, layer and unit of width, the figure for
    one transformer layer without recomputation (Korthikanti et al. 2022, equation 1, without the
    attention matrix, which is never stored whole).
    """

    config = json.loads((model_dir / "config.json").read_text())
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    stored = sum(f.stat().st_size for f in model_dir.glob("*.safetensors"))
    weights = stored // 2 if dtype == "float32" else stored
    activations = 34 * batch_tokens * config["hidden_size"] * config["num_hidden_layers"]
    return int(weights + activations + 2 * GIB)


def require_room(needed: int, read: Callable[[], Memory] = read_memory) -> None:
    """Raise `NoRoom` with the figures unless `needed` bytes are free beside the server."""
    memory = read()
    if memory.free < needed:
        raise NoRoom(
            f"training needs about {needed / GIB:.1f} GiB beside the server, "
            f"{memory.free / GIB:.1f} of {memory.total / GIB:.1f} GiB are free: lower vLLM's "
            '--gpu-memory-utilization, or set gpu_sharing = "sleep" or "separate"'
        )


@asynccontextmanager
async def asleep(servers: Sequence[HttpServer], level: int = 1) -> AsyncIterator[None]:
    """The servers sleep inside the block: what runs is finished first, then memory is given back.

    While they sleep their alias answers 503; after it nothing is routed until `Fleet.ensure` has
    verified it again.
    """
    sent: list[HttpServer] = []
    try:
        for server in servers:
            # A request that was cut off may have put it to sleep all the same.
            sent.append(server)
            try:
                await _sleep(server, level)
            except NoRoom:
                sent.remove(server)
                raise
        yield
    finally:
        for server in sent:
            await wake(server)


async def wake(server: HttpServer) -> None:
    """Wake a server; one that is awake stays so. Also for a daemon that finds one asleep."""
    await server.post("/wake_up", timeout_s=WAKE_S)


async def _sleep(server: HttpServer, level: int) -> None:
    try:
        await server.post(f"/sleep?level={level}&mode=wait", timeout_s=SLEEP_S)
    except ServerRefused as refused:
        if refused.status != 404:
            raise
        raise NoRoom(
            f'{server.url} cannot sleep: gpu_sharing = "sleep" needs vLLM started with '
            "--enable-sleep-mode and VLLM_SERVER_DEV_MODE=1"
        ) from refused


def _ok(code: int) -> None:
    if code != 0:
        raise NoRoom(f"the NVIDIA driver does not answer (NVML error {code})")
