"""deploy/palorad-vllm.service is a valid unit, hardened, and still reaches the GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "deploy" / "palorad-vllm.service"
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a command that exists here, because verify looks for it."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/vllm/bin/vllm", "/bin/true"))
    return copy


@needs_systemd
def test_systemd_accepts_it(unit: Path) -> None:
    done = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    said = [x for x in done.stderr.splitlines() if unit.name in x or "group name" in x]
    assert done.returncode == 0, done.stderr
    assert said == []


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


def test_it_still_reaches_the_gpu_and_stays_on_this_machine() -> None:
    lines = [line.strip() for line in UNIT.read_text().splitlines()]
    assert "DeviceAllow=char-nvidia-frontend rw" in lines
    for forbidden in ("PrivateDevices=yes", "MemoryDenyWriteExecute=yes", "PrivateNetwork=yes"):
        assert forbidden not in lines
    text = UNIT.read_text().replace("\\\n", " ")
    assert re.search(r"--host 127\.0\.0\.1", text)
    assert re.search(r"--middleware palorad_alias\.AliasMiddleware", text)
    assert "IPAddressDeny=any" in lines
