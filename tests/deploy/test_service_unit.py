"""deploy/palorad.service is a valid unit, hardened, fed by the loop, and reaches the GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "deploy" / "palorad.service"
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a command that exists here, because verify looks for it."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/palorad/venv/bin/palorad", "/bin/true"))
    return copy


@needs_systemd
def test_systemd_accepts_it(unit: Path) -> None:
    done = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if unit.name in line] == []


@needs_systemd
def test_it_is_hardened(unit: Path) -> None:
    done = subprocess.run(
        [str(ANALYZE), "security", "--offline=yes", "--threshold=40", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-400:]
    exposure = re.search(r"exposure level.*?: ([\d.]+)", done.stdout)
    assert exposure is not None
    assert float(exposure[1]) <= 4.0


def test_it_fits_what_the_daemon_does() -> None:
    lines = [line.strip() for line in UNIT.read_text().splitlines()]
    for needed in (
        "Type=notify",
        "WatchdogSec=30",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "KillMode=mixed",
        "RestartPreventExitStatus=2",
        "StateDirectory=palorad",
        "DeviceAllow=char-nvidia-frontend rw",
    ):
        assert needed in lines
    for forbidden in ("PrivateDevices=yes", "MemoryDenyWriteExecute=yes", "PrivateNetwork=yes"):
        assert forbidden not in lines
