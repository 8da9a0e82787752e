"""What `palorad doctor` says of the host: driver, vLLM, its flags, keys, clock, disk."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
import pynvml

from daemon.cli.memory_check import memory_findings
from daemon.cli.suite_check import CheckResult
from daemon.ledger.ledger import Ledger
from daemon.serving import gpu
from daemon.serving.identity import CLOSE
from daemon.serving.server_command import has_gpu
from daemon.serving.vllm_version import VLLM_AT_LEAST, VLLM_TESTED, known_version
from policies.errors import PaloradError

if TYPE_CHECKING:
    from daemon.config.settings import Settings

ASK_S: Final = 20.0
LATE: Final = timedelta(minutes=1)
OWN_FLAGS: Final = {
    "--host": "server.urls",
    "--port": "server.urls",
    "--served-model-name": "model.name",
    "--max-lora-rank": "server.max_lora_rank",
    "--max-loras": "server.max_loras",
    "--max-cpu-loras": "server.max_cpu_loras",
    "--enable-lora": "",
    "--api-server-count": "",
    "--middleware": "",
    "--lora-modules": "",
}
"""Flags that palorad gives vLLM itself, and the setting that decides each."""
_NETWORK: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "ceph"})
_VERSION: Final = "from importlib.metadata import version; print(version('vllm'))"


def host_findings(settings: Settings) -> Iterator[CheckResult]:
    """Likely mistakes on this host, and what is well."""
    yield from memory_findings(settings)
    yield from process_findings(settings)
    if has_gpu():
        yield _driver()
    if settings.server.kind == "vllm":
        yield from _vllm(settings)
        yield from _flags(settings)
    yield from _keys(settings)
    yield from _clock(settings)
    yield from _file_system(settings.state_dir)


# --- processes and driver ---------------------------------------------------------------------


def process_findings(settings: Settings) -> Iterator[CheckResult]:
    """Whether as many processes as are to train together can do so here, where they train here."""
    count = settings.train.processes
    if count == 1 or settings.train.launcher != "local":
        return
    what = f"{count} processes that train together"
    try:
        gpu.require_places(count, os.environ)
    except PaloradError as error:
        yield CheckResult(what, False, str(error))
    else:
        yield CheckResult(what, True)


def driver_cuda() -> tuple[int, int]:
    """The newest CUDA version that the NVIDIA driver knows; raises `pynvml.NVMLError`."""
    pynvml.nvmlInit()
    try:
        number = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
    finally:
        pynvml.nvmlShutdown()
    return number // 1000, number % 1000 // 10


def torch_version() -> str:
    """Of the torch that trains, such as "2.11.0+cu128"; "" where there is none."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def _driver() -> CheckResult:
    try:
        major, minor = driver_cuda()
    except pynvml.NVMLError as error:
        return CheckResult("NVIDIA driver", False, f"it does not answer ({error}); see nvidia-smi")
    torch = torch_version()
    what = f"NVIDIA driver for CUDA {major}.{minor}, torch {torch}"
    if torch.endswith("+cpu"):
        return CheckResult(what, False, "this torch cannot use the GPU: install its CUDA build")
    built = re.search(r"\+cu(\d+)\d$", torch)
    if built and int(built[1]) > major:
        return CheckResult(what, False, f"torch needs CUDA {built[1]}: install a newer driver")
    return CheckResult(what, True)


# --- vLLM ------------------------------------------------------------------------------------


def _vllm(settings: Settings) -> Iterator[CheckResult]:
    if settings.server.mode == "managed":
        executable = shutil.which(settings.server.executable)
        if executable is not None:  # otherwise it was said before
            yield _judged(settings.server.executable, installed_vllm(Path(executable)))
        return
    for url in settings.server.urls:
        if (told := served_vllm(url)) is not None:
            yield _judged(url, told)


def installed_vllm(executable: Path) -> str:
    """The version of vLLM in the environment of its `vllm`; "" where it cannot be told."""
    python = executable.parent / "python"
    try:
        done = subprocess.run(
            [python, "-c", _VERSION], capture_output=True, text=True, timeout=ASK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def served_vllm(url: str) -> str | None:
    """The version that a running vLLM tells; None where none answers."""
    try:
        answer = httpx.get(f"{url}/version", timeout=3.0, trust_env=False)
        return str(answer.json()["version"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None


def _judged(where: str, told: str) -> CheckResult:
    known = known_version(told)
    if known is None:
        return CheckResult(f"vLLM of {where}", True, "its version cannot be told")
    what = f"vLLM {told} of {where}"
    tested = ".".join(map(str, VLLM_TESTED))
    if known < VLLM_AT_LEAST:
        advice = "requests under way can be answered by another adapter when one is loaded"
        return CheckResult(what, False, f"{advice}; install {tested} (deploy/setup-vllm.sh)")
    return CheckResult(
        what, True, "" if known >= VLLM_TESTED else f"palorad is tested with {tested}"
    )


def _flags(settings: Settings) -> Iterator[CheckResult]:
    if settings.server.mode != "managed":
        return
    given = {one.partition("=")[0] for one in settings.server.extra_args if one.startswith("--")}
    for flag in sorted(given & set(OWN_FLAGS)):
        key = OWN_FLAGS[flag]
        advice = f"palorad gives {flag} itself: remove it{f', and set {key}' if key else ''}"
        yield CheckResult(f"server.extra_args {flag}", False, advice)
    if "--quantization" in given:
        advice = (
            "adapters are trained on the unquantised base, whose answers the identity check "
            f"expects to {CLOSE.logprob:g} nats on a GPU; the gate compares quantised answers"
        )
        yield CheckResult("server.extra_args --quantization", True, advice)
    if "--data-parallel-size" in given:
        advice = "each engine would load adapters by itself: run replicas, and name them in urls"
        yield CheckResult("server.extra_args --data-parallel-size", False, advice)


# --- keys, clock, disk -----------------------------------------------------------------------


def _keys(settings: Settings) -> Iterator[CheckResult]:
    layout = settings.layout
    named = {
        "server.admin_key_file": settings.server.admin_key_file,
        "server.user_key_file": settings.server.user_key_file,
        "gate.judge.key_file": settings.gate.judge.key_file,
        "notify.key_file": settings.notify.key_file,
        **{f"key_file of feed {feed.name}": feed.key_file for feed in settings.feeds},
    }
    own = (layout.admin_key, layout.anchor_key, layout.webhook_key)
    for what, path in (*named.items(), *(("key", path) for path in own if path.exists())):
        if path is not None:
            yield _key(what, path)


def _key(what: str, path: Path) -> CheckResult:
    told = f"{what} {path}"
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        return CheckResult(told, False, f"{error.strerror}; correct the path or its rights")
    if not os.access(path, os.R_OK):
        return CheckResult(told, False, "this user may not read it; run as the daemon's user")
    if mode & 0o007:
        return CheckResult(told, False, f"everybody may use it (mode {mode:o}): chmod 600 {path}")
    return CheckResult(told, True, "its group may read it" if mode & 0o070 else "")


def _clock(settings: Settings) -> Iterator[CheckResult]:
    """Whether the clock is behind what was stored last, or nobody sets it."""
    now, path = datetime.now(UTC), settings.layout.ledger
    if path.exists():
        try:
            with Ledger.open(path, readonly=True) as ledger:
                latest = ledger.events.latest(1)
        except PaloradError as error:
            yield CheckResult(f"ledger {path}", False, str(error))
            return
        if latest and latest[0].at > now + LATE:
            behind = (latest[0].at - now).total_seconds() / 60
            advice = f"it is {behind:.0f} min behind the ledger's last event; set it (timedatectl)"
            yield CheckResult(f"clock {now:%Y-%m-%d %H:%M} UTC", False, advice)
            return
    synchronised = clock_is_set()
    advice = "nothing synchronises it: timedatectl set-ntp true" if synchronised is False else ""
    yield CheckResult(f"clock {now:%Y-%m-%d %H:%M} UTC", True, advice)


def clock_is_set() -> bool | None:
    """Whether the clock is synchronised; None where systemd does not tell."""
    asked = ["timedatectl", "show", "--property", "NTPSynchronized", "--value"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"yes": True, "no": False}.get(done.stdout.strip())


def _file_system(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> Iterator[CheckResult]:
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return
    resolved = folder.absolute()
    holds = [(where, kind) for _, where, kind, *_ in lines if resolved.is_relative_to(where)]
    kind = max(holds, key=lambda one: len(one[0]), default=("", ""))[1]
    if kind in _NETWORK:
        advice = "locks and durability are the server's: keep the state on a local disk"
        yield CheckResult(f"state_dir on {kind}", True, advice)
    elif kind == "tmpfs":
        yield CheckResult("state_dir on tmpfs", True, "everything is lost at the next boot")
