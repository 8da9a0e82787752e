"""How the managed server is started, watched and ended; no server of ours is needed for it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from daemon.config.settings import Settings
from daemon.serving import server_command, server_process, tether
from daemon.serving.alias import AdminGateway, AliasMiddleware
from daemon.serving.client import HttpServer
from daemon.serving.server_command import Command
from daemon.serving.server_process import Phase, Supervised
from policies.errors import ServerUnusable
from tests.support.live import free_port

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *a): pass
print("listening", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def settings(tmp_path: Path, **server: object) -> Settings:
    return Settings(state_dir=tmp_path, server={"urls": ("http://127.0.0.1:8421",), **server})


def command(tmp_path: Path, source: str, port: int | None = None) -> Command:
    port = port or free_port()
    arguments = (sys.executable, "-c", source, str(port))
    return Command(arguments, "127.0.0.1", port, tmp_path / "server.log")


def health(port: int) -> Callable[[], Awaitable[bool]]:
    async def ask() -> bool:
        server = HttpServer(f"http://127.0.0.1:{port}")
        try:
            return await server.healthy()
        finally:
            await server.aclose()

    return ask


async def until(true: Callable[[], bool], limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():  # another process is waited for
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_a_killed_server_is_started_again_and_ends_with_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_process, "FIRST_PAUSE_S", 0.01)
    run = command(tmp_path, SERVER)

    async def story() -> None:
        child = Supervised(run, health(run.port))
        task = asyncio.create_task(child.run())
        await until(lambda: child.phase is Phase.RUNNING)
        assert child.pid is not None
        first = child.pid
        os.killpg(first, signal.SIGKILL)
        await until(lambda: child.starts == 2 and child.phase is Phase.RUNNING)
        assert child.pid != first
        second = child.pid
        await child.stop()
        await task
        assert child.phase is Phase.STOPPED
        with pytest.raises(ProcessLookupError):
            os.killpg(second, 0)

    asyncio.run(story())
    assert "listening" in run.log.read_text()


def test_a_server_that_cannot_start_says_why_and_is_tried_with_growing_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_process, "FIRST_PAUSE_S", 0.01)
    run = command(tmp_path, "import sys; sys.exit('the model is missing')")
    reasons = set()

    async def story() -> None:
        child = Supervised(run, health(run.port))
        task = asyncio.create_task(child.run())
        await until(lambda: child.starts >= 3)
        reasons.add(child.reason)
        await child.stop()
        await task

    asyncio.run(story())
    (reason,) = reasons
    assert "the server ended while starting (exit 1): the model is missing" in reason


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    run = command(tmp_path, "import time; time.sleep(60)")

    async def story() -> str:
        child = Supervised(run, health(run.port), start_timeout_s=0.3)
        task = asyncio.create_task(child.run())
        await until(lambda: child.phase is Phase.PAUSING)
        await child.stop()
        await task
        return child.reason

    assert "not ready within 0.3 s" in asyncio.run(story())


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        with pytest.raises(ServerUnusable, match=f"cannot listen on 127.0.0.1:{port}"):
            asyncio.run(server_process.free_port("127.0.0.1", port, 0.0))
    asyncio.run(server_process.free_port("127.0.0.1", port, 0.0))


@pytest.mark.parametrize("stubborn", [False, True])
def test_the_server_ends_with_a_killed_daemon(tmp_path: Path, stubborn: bool) -> None:
    """A daemon that is killed cannot end anything itself: the kernel tells the tether."""
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" if stubborn else ""
    source = f"{ignore}import time; print('up', flush=True); time.sleep(600)"
    shim = tmp_path / "tether.py"
    shim.write_text(Path(tether.__file__).read_text().replace("GRACE_S = 12", "GRACE_S = 1"))
    parent = (
        "import os, subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-I', {str(shim)!r}, str(os.getpid()),"
        f" sys.executable, '-c', {source!r}], start_new_session=True)\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    daemon = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    said = {daemon.stdout.readline().strip() for _ in range(2)}
    group = int((said - {"up"}).pop())
    os.killpg(group, 0)
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()
    deadline = time.monotonic() + 20
    while _alive(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(group)


LOUD = {
    "lines": "for n in range(40_000): print('line', n, 'x' * 80, flush=False)",
    "no line": "import os\nfor n in range(400): os.write(1, b'y' * 10_000)",
    "bytes": "import os\nfor n in range(400): os.write(2, b'\\xff\\x00' * 5_000 + b'\\n')",
}


@pytest.mark.parametrize("how", list(LOUD))
def test_the_servers_log_is_bounded_whatever_it_says(tmp_path: Path, how: str) -> None:
    """It was set aside at a start only, and grew by gigabytes an hour."""
    run = command(tmp_path, LOUD[how] + "\nimport sys; sys.exit('\\nthe last word')")
    code = (
        "import asyncio, sys; from daemon.serving import server_process, tether\n"
        "from daemon.serving.server_command import Command; from pathlib import Path\n"
        f"command = Command({run.arguments!r}, '127.0.0.1', {run.port}, Path({str(run.log)!r}))\n"
        "async def main():\n"
        "    return await (await server_process._spawn(command)).wait()\n"
        "sys.exit(asyncio.run(main()))\n"
    )
    shim = Path(tether.__file__).read_text()
    assert "LOG_BYTES = 10_000_000" in shim
    small = tmp_path / "tether.py"
    small.write_text(shim.replace("LOG_BYTES = 10_000_000", "LOG_BYTES = 100_000"))
    code = code.replace("async def", f"tether.__file__ = {str(small)!r}\nasync def")
    ended = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert ended.returncode == 1
    logs = sorted(tmp_path.glob("server.log*"))
    assert 1 < len(logs) <= 3
    assert sum(file.stat().st_size for file in logs) < 400_000
    assert server_process.last_line(run.log) == "the last word"


def test_a_server_that_cannot_be_started_says_so_in_its_log(tmp_path: Path) -> None:
    run = Command(("/nowhere/server",), "127.0.0.1", free_port(), tmp_path / "log" / "server.log")

    async def story() -> None:
        assert await (await server_process._spawn(run)).wait() == 127

    asyncio.run(story())
    assert "/nowhere/server cannot be started" in server_process.last_line(run.log)


def _alive(group: int) -> bool:
    states = [
        fields[0]
        for stat in Path("/proc").glob("[0-9]*/stat")
        if (fields := _fields(stat)) and int(fields[2]) == group
    ]
    return any(state != "Z" for state in states)


def _fields(stat: Path) -> list[str]:
    try:
        return stat.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def test_vllm_is_started_with_the_flags_that_promotion_needs(tmp_path: Path) -> None:
    executable = tmp_path / "vllm"
    executable.write_text("#!/bin/sh\n")
    executable.chmod(0o755)
    key = tmp_path / "user.key"
    chosen = settings(
        tmp_path,
        kind="vllm",
        executable=str(executable),
        max_loras=5,
        extra_args=("--dtype", "bfloat16"),
        user_key_file=key,
    )
    made = server_command.command(
        chosen, Path("/models/m"), {"VLLM_CPU_KVCACHE_SPACE": "4", "OMP_NUM_THREADS": "64"}
    )
    line = " ".join(made.arguments)
    assert line.startswith(f"{executable} serve /models/m --served-model-name base")
    for flags in (
        "--host 127.0.0.1 --port 8421",
        "--enable-lora --max-lora-rank 128 --max-loras 5 --max-cpu-loras 16",
        "--api-server-count 1",
        "--middleware palorad_alias.AliasMiddleware",
    ):
        assert flags in line
    assert "--enable-sleep-mode" not in line
    assert line.count("--dtype") == 1
    added = made.environment
    assert "VLLM_SERVER_DEV_MODE" not in added
    assert added["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert "VLLM_CPU_KVCACHE_SPACE" not in added
    if not server_command.has_gpu():
        assert 1 <= int(added["OMP_NUM_THREADS"]) < max(2, len(os.sched_getaffinity(0)))
    assert added["PALORAD_ALIAS_FILE"] == str(tmp_path / "alias.json")
    assert added["PALORAD_USER_KEY_FILE"] == str(key)
    assert added["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path / "middleware")


@pytest.mark.parametrize("gpu", [True, False])
def test_a_vllm_that_is_to_sleep_gets_the_flag_where_there_is_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    """vLLM refuses the flag elsewhere; pausing its scheduler needs the development routes only."""
    monkeypatch.setattr(server_command, "has_gpu", lambda: gpu)
    chosen = settings(tmp_path, kind="vllm", executable=sys.executable, gpu_sharing="sleep")
    made = server_command.command(chosen, Path("/models/m"), {})
    assert ("--enable-sleep-mode" in made.arguments) is gpu
    assert made.environment["VLLM_SERVER_DEV_MODE"] == "1"


def test_a_missing_vllm_is_one_clear_line(tmp_path: Path) -> None:
    chosen = settings(tmp_path, kind="vllm", executable="/nowhere/vllm")
    with pytest.raises(ServerUnusable, match="make setup-vllm"):
        server_command.command(chosen, Path("/m"), {})


def test_the_middleware_is_copied_as_it_is_and_imports_alone(tmp_path: Path) -> None:
    file = server_command.install_middleware(tmp_path)
    assert server_command.install_middleware(tmp_path) == file
    code = "import palorad_alias, sys; assert 'daemon' not in sys.modules"
    subprocess.run(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": str(file.parent)}, check=True
    )


def test_the_environment_names_the_middleware_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server_command.gateway_environment(settings(tmp_path)).items():
        monkeypatch.setenv(name, value)
    gateway = AdminGateway.from_environment()
    assert gateway.served == tmp_path / "served"
    assert isinstance(AliasMiddleware(httpx.ASGITransport, gateway), AliasMiddleware)  # type: ignore[arg-type]  # never called
