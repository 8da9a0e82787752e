"""How a managed server is started: arguments and environment from the settings."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from adapters import files
from daemon.children.threads import engine_threads, threads
from daemon.config.settings import Settings
from daemon.serving import alias
from policies.errors import ServerUnusable

MIDDLEWARE = "palorad_alias"


@dataclass(frozen=True, slots=True)
class Command:
    """What to run and where it listens; `environment` is added to the daemon's own."""

    arguments: tuple[str, ...]
    host: str
    port: int
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def admin_key_file(settings: Settings) -> Path:
    """Where palorad's key for admin routes lies."""
    return settings.server.admin_key_file or settings.layout.admin_key


def address(url: str) -> tuple[str, int]:
    """Host and port of a base URL."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or (443 if parts.scheme == "https" else 80)


def command(settings: Settings, model: Path, environment: Mapping[str, str]) -> Command:
    """The managed server over the base in `model`; `environment` is the daemon's own.

    Raises `ServerUnusable` when vLLM's executable is not there.
    """
    if settings.server.kind == "embedded":
        return _embedded(settings, model, environment)
    return _vllm(settings, model, environment)


def _embedded(settings: Settings, model: Path, environment: Mapping[str, str]) -> Command:
    host, port = address(settings.server.urls[0])
    layout = settings.layout
    arguments = [
        *(sys.executable, "-m", "daemon.embedded.app", "--model", str(model)),
        *("--name", settings.model.name, "--host", host, "--port", str(port)),
        *("--max-lora-rank", str(settings.server.max_lora_rank)),
        *("--alias-file", str(layout.alias), "--served-dir", str(layout.served)),
        *("--admin-key-file", str(admin_key_file(settings))),
    ]
    if settings.server.user_key_file is not None:
        arguments += ["--user-key-file", str(settings.server.user_key_file)]
    root = str(Path(__file__).resolve().parents[2])
    added = {"PYTHONPATH": os.pathsep.join([root, *_inherited("PYTHONPATH")])}
    added |= threads(environment)
    return Command(tuple(arguments), host, port, layout.root / "log" / "server.log", added)


def _vllm(settings: Settings, model: Path, environment: Mapping[str, str]) -> Command:
    server, layout = settings.server, settings.layout
    host, port = address(server.urls[0])
    executable = shutil.which(server.executable)
    if executable is None:
        raise ServerUnusable(
            f"[server] executable: no program {server.executable!r}; "
            "install vLLM (make setup-vllm) and name its bin/vllm"
        )
    arguments = [
        *(executable, "serve", str(model), "--served-model-name", settings.model.name),
        *("--host", host, "--port", str(port), "--enable-lora"),
        *("--max-lora-rank", str(server.max_lora_rank), "--max-loras", str(server.max_loras)),
        *("--max-cpu-loras", str(server.max_cpu_loras), "--api-server-count", "1"),
        *("--middleware", f"{MIDDLEWARE}.AliasMiddleware"),
    ]
    if not has_gpu() and not any(a.startswith("--dtype") for a in server.extra_args):
        # The CPU build: the arithmetic of the identity probe, and no compilation at every start.
        arguments += ["--dtype", "float32", "--enforce-eager"]
    if server.gpu_sharing == "sleep" and has_gpu():
        # vLLM refuses the flag without one; its scheduler can be paused all the same.
        arguments.append("--enable-sleep-mode")
    arguments += server.extra_args
    gateway = gateway_environment(settings)
    defaults = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    added = {k: v for k, v in defaults.items() if k not in environment} | gateway
    if not has_gpu():
        added |= engine_threads(environment)
    added["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
    if server.gpu_sharing == "sleep":
        added["VLLM_SERVER_DEV_MODE"] = "1"
    return Command(tuple(arguments), host, port, layout.root / "log" / "server.log", added)


def gateway_environment(settings: Settings) -> dict[str, str]:
    """What the middleware needs to know in vLLM's environment."""
    layout = settings.layout
    added = {
        "PALORAD_ALIAS_FILE": str(layout.alias),
        "PALORAD_ADMIN_KEY_FILE": str(admin_key_file(settings)),
        "PALORAD_SERVED_DIR": str(layout.served),
        "PYTHONPATH": os.pathsep.join([str(layout.root / "middleware"), *_inherited("PYTHONPATH")]),
    }
    if settings.server.user_key_file is not None:
        added["PALORAD_USER_KEY_FILE"] = str(settings.server.user_key_file)
    return added


def install_middleware(state_dir: Path) -> Path:
    """Copy the middleware to where vLLM's PYTHONPATH finds it; return the file."""
    target = state_dir / "middleware" / f"{MIDDLEWARE}.py"
    source = Path(alias.__file__).read_bytes()
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.is_file() or target.read_bytes() != source:
        files.write_bytes(target, source)
    return target


def has_gpu() -> bool:
    """Whether this machine shows an NVIDIA device."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()


def _inherited(name: str) -> list[str]:
    return [value] if (value := os.environ.get(name)) else []
