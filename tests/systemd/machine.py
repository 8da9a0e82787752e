"""A container with Debian's systemd in which README's commands are run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SUITE = os.environ.get("PALORAD_TEST_SUITE", "bookworm")
MIRROR = os.environ.get("PALORAD_TEST_MIRROR", "http://deb.debian.org/debian")
PACKAGES = "systemd,systemd-sysv,dbus,python3"
BASE = ROOT / "build" / "systemd" / SUITE
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
SITE = f"/opt/palorad/.venv/lib/{PYTHON}/site-packages"
SECTION = "## Your own model, on a GPU host with vLLM\n"
# Parts of README that are not run: hours of downloads, a GPU, or a fit that comes with the model.
LEFT_OUT = ("git clone ", "make setup ", "deploy/setup-vllm.sh ", ".venv/bin/palorad probe fit")


def missing() -> str:
    """What this machine lacks for a container; empty where it lacks nothing."""
    if os.geteuid() != 0:
        return "root"
    for program in ("systemd-nspawn", "nsenter", *([] if BASE.exists() else ["debootstrap"])):
        if shutil.which(program) is None:
            return program
    return ""


def commands() -> list[str]:
    """README's commands for a host, block by block, without what is left out."""
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index(SECTION) + len(SECTION) :].split("\n## ", 1)[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    for part in LEFT_OUT:
        assert any(part in block for block in blocks), part
    kept = (
        "\n".join(x for x in b.splitlines() if not any(p in x for p in LEFT_OUT)) for b in blocks
    )
    return [block for block in kept if block.strip()]


def make_base() -> None:
    """Debian with systemd and Python, once."""
    if BASE.exists():
        return
    half = BASE.with_name(f".{SUITE}.half")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    arguments = ["--variant=minbase", f"--include={PACKAGES}", SUITE, str(half), MIRROR]
    subprocess.run(["debootstrap", *arguments], check=True, stdout=subprocess.DEVNULL)
    half.rename(BASE)


class Machine:
    """One booted container; what is changed in it is gone with it."""

    def __init__(self, place: Path) -> None:
        assert (BASE / "usr" / "bin" / PYTHON).exists(), f"{SUITE} has no {PYTHON}"
        palorad, vllm, extra = place / "palorad", place / "vllm", place / "extra"
        _install(palorad)
        (vllm / "bin").mkdir(parents=True)
        shutil.copy(ROOT / "tests" / "systemd" / "vllm", vllm / "bin" / "vllm")
        extra.mkdir()
        (extra / "palorad-here.pth").write_text("/opt/palorad\n")
        site = sysconfig.get_paths()["purelib"]
        self._log = (place / "console").open("wb")
        self._nspawn = subprocess.Popen(
            [
                *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"),
                *("--volatile=overlay", "--private-network", "--link-journal=no"),
                *("--console=pipe", f"--machine=palorad-{os.getpid()}", f"--directory={BASE}"),
                *(f"--bind={palorad}:/opt/palorad", f"--bind={vllm}:/opt/vllm"),
                f"--overlay-ro={site}:{extra}:{SITE}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._console = place / "console"
        self.until(lambda: self._leader() is not None, "starting")
        self.until(lambda: "running" in self.state() or "degraded" in self.state(), "booting")

    def _leader(self) -> str | None:
        assert self._nspawn.poll() is None, self._console.read_text(errors="replace")[-2000:]
        pid = self._nspawn.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return children[0] if children else None

    def state(self) -> str:
        """What systemd says of the whole machine."""
        return self.run("systemctl is-system-running", check=False)

    def run(self, script: str, *, check: bool = True) -> str:
        """Run a shell script as root in the container; its output, whole."""
        enter = ["nsenter", "-t", str(self._leader()), "-m", "-u", "-i", "-n", "-p", "-C"]
        environment = {"PATH": "/usr/sbin:/usr/bin", "LANG": "C.UTF-8", "HOME": "/root"}
        done = subprocess.run(
            [*enter, "--", "/bin/bash", "-euc", f"cd /opt/palorad\n{script}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        assert not check or done.returncode == 0, f"{script}\n{done.stdout}"
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """Put a file into the container."""
        self.run(f"cat > {path} <<'END_OF_FILE'\n{text}\nEND_OF_FILE")

    def of(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.run(f"systemctl show {unit} --property={name} --value").strip()

    def process(self, unit: str) -> dict[str, str]:
        """The lines of /proc/PID/status of the unit's main process, by name."""
        status = self.run(f"cat /proc/{self.of(unit, 'MainPID')}/status")
        return dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)

    def groups(self, unit: str) -> tuple[str, set[str]]:
        """User and groups of the unit's main process, by name."""
        status = self.process(unit)
        uid, gids = status["Uid"].split()[0], {status["Gid"].split()[0], *status["Groups"].split()}
        user = self.run(f"getent passwd {uid}").split(":")[0]
        named = self.run(f"getent group {' '.join(sorted(gids))}").splitlines()
        return user, {line.split(":")[0] for line in named}

    def until(self, holds: Callable[[], bool], what: str, patience_s: float = 180) -> None:
        """Wait for something; fail with the journal's end when it takes too long."""
        end = time.monotonic() + patience_s
        while not holds():
            if time.monotonic() > end:
                told = self.run("journalctl --no-pager -n 60 -o cat", check=False)
                raise AssertionError(f"{what} takes longer than {patience_s:g} s\n{told}")
            time.sleep(0.3)

    def found(self) -> dict[str, Any]:
        """What the stand-in for vLLM wrote of its rights."""
        found: dict[str, Any] = json.loads(self.run("cat /run/palorad-vllm/found.json"))
        return found

    def close(self) -> None:
        """Shut the container down."""
        if self._nspawn.poll() is None:
            self._nspawn.send_signal(signal.SIGTERM)
            try:
                self._nspawn.wait(60)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()
        self._log.close()


def _install(target: Path) -> None:
    """What `git clone` and `make setup` leave in /opt/palorad; the packages are mounted later."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        if name.split("/")[0] not in ("benchmarks", "docs", "tests") and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    venv = target / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "lib" / PYTHON / "site-packages").mkdir(parents=True)
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (venv / "bin" / "python").symlink_to(f"/usr/bin/{PYTHON}")
    script = venv / "bin" / "palorad"
    script.write_text("#!/opt/palorad/.venv/bin/python\nfrom daemon.cli.main import main\nmain()\n")
    script.chmod(0o755)
    subprocess.run(["chmod", "-R", "a+rX", str(target)], check=True)
