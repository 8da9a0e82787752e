"""Real servers for tests: embedded or vLLM, as the daemon would start them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

from adapters import files, lora, store
from adapters.checks import identity_probe
from adapters.generate import Generator
from adapters.lora import Lora
from adapters.models import expected_shapes
from daemon.config.settings import Settings
from daemon.serving import keys, pointer, replicas, server_command, tether
from daemon.serving.client import HttpServer
from daemon.serving.fleet import Fleet
from daemon.serving.pointer import Pointer
from policies.records import Revision
from tests.support import tiny

NOW = datetime(2026, 1, 1, tzinfo=UTC)
Answer = TypeVar("Answer")
PROMPTS = ("The capital of Bhutan is", "12 + 30 =", "Who wrote it?")
VLLM = Path(os.environ.get("PALORAD_TEST_VLLM", Path(__file__).parents[2] / ".venv-vllm/bin/vllm"))
QUICK = {"OMP_NUM_THREADS": "1", "VLLM_SERVER_DEV_MODE": "1"}
SMALL = ("--max-model-len", "512", "--max-num-seqs", "32")


def model(directory: Path) -> Path:
    """A random model whose heads are wide enough for vLLM's kernels."""
    return tiny.build(directory, hidden=128, intermediate=192)


def random_lora(model_dir: Path, seed: int, rank: int = 4, size: float = 0.12) -> Lora:
    """Factors on every MLP matrix, large enough to change what is answered."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, (out, inside) in expected_shapes(model_dir).items():
        if ".mlp." in name:
            down = torch.randn(rank, inside, generator=generator) * size
            factors[name] = (down, torch.randn(out, rank, generator=generator) * size)
    return Lora(factors, dict.fromkeys(factors, 1.0))


def publish(generator: Generator, served: Path, number: int, seed: int | None = None) -> Revision:
    """A revision with its identity, as the training child publishes it."""
    seed = number if seed is None else seed
    staging = store.staging(served, f"test-{number}-{seed}")
    lora.write(staging, random_lora(generator.model_dir, seed), "base")
    generator.load("staged", staging)
    identity = identity_probe(generator, "staged", PROMPTS, 8)
    generator.unload("staged")
    files.write_json(staging / "identity.json", identity)
    path = store.publish(staging, served, {}, lambda sha: f"palora-{number:06}-{sha[:8]}")
    return revision(number, path.name)


def revision(number: int, name: str) -> Revision:
    """A ledger row for a served name."""
    return Revision(
        number=number,
        plan_id=None,
        parent=None,
        lineage=(),
        served_name=name,
        sha256=None,
        created_at=NOW,
    )


BASE = revision(0, "base")


class Live:
    """One server process behind one state directory."""

    def __init__(self, kind: str, state: Path, model_dir: Path, **server: Any) -> None:
        self.kind = kind
        self.model_dir = model_dir
        self.url = f"http://127.0.0.1:{free_port()}"
        vllm = {"executable": str(VLLM), "extra_args": SMALL}
        extra: dict[str, Any] = vllm if kind == "vllm" else {}
        chosen: dict[str, Any] = {
            "state_dir": state,
            "intake": {"inbox": state / "inbox"},
            "model": {"path": model_dir, "alias": "live"},
            "server": {
                "kind": kind,
                "urls": (self.url,),
                "max_lora_rank": 16,
                "max_cpu_loras": 32,
                **extra,
                **server,
            },
            "train": {"rank": 8, "rank_budget": 16},
        }
        self.settings = Settings(**chosen)
        layout = self.settings.layout
        for directory in layout.directories():
            directory.mkdir(parents=True, exist_ok=True)
        server_command.install_middleware(state)
        self.admin_key = keys.ensure(layout.admin_key)
        if pointer.read(layout.alias) is None:
            pointer.write(layout.alias, Pointer(alias="live", model="base", revision=0))
        self.log = state / "log" / f"server-{self.url.rsplit(':', 1)[1]}.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def served(self) -> Path:
        return self.settings.layout.served

    def start(self, wait: bool = True) -> Live:
        """Start the process and wait until it is healthy."""
        command = server_command.command(self.settings, self.model_dir, os.environ)
        arguments = self.arguments(command)
        self.log.parent.mkdir(exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I", tether.__file__, str(os.getpid()), *arguments],
                stdout=log,
                stderr=log,
                env={**os.environ, **QUICK, **command.environment},
                start_new_session=True,
            )
        if wait:
            self.wait()
        return self

    def arguments(self, command: server_command.Command) -> Sequence[str]:
        """What is run; a subclass may leave something out."""
        return command.arguments

    def wait(self, limit_s: float = 1800.0) -> None:
        """Until `/health` answers."""
        deadline = time.monotonic() + limit_s
        while not self.do(lambda server: server.healthy()):
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"no server: {self.log.read_text()[-3000:]}")
            time.sleep(0.2 if self.kind == "embedded" else 1.0)

    def kill(self) -> None:
        """As a power cut would: the whole group at once."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Gently, and then not."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def do(self, ask: Callable[[HttpServer], Awaitable[Answer]], *, admin: bool = True) -> Answer:
        """Run one coroutine with a client of its own."""

        async def run() -> Answer:
            server = HttpServer(self.url, admin_key=self.admin_key if admin else None)
            try:
                return await ask(server)
            finally:
                await server.aclose()

        return asyncio.run(run())

    def fleet(self, ask: Callable[[Fleet], Awaitable[Answer]], *others: Live) -> Answer:
        """Run one coroutine with a fleet over this server and others, as a new daemon has it."""
        urls = tuple(live.url for live in (self, *others))
        server = self.settings.server.model_copy(update={"urls": urls, "mode": "attach"})
        settings = self.settings.model_copy(update={"server": server})

        async def run() -> Answer:
            servers = replicas.connect(settings)
            try:
                return await ask(replicas.fleet(settings, servers))
            finally:
                for one in servers:
                    await one.aclose()

        return asyncio.run(run())


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
