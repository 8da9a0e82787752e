"""The built wheel holds everything: installed alone, it runs the commands."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("policies", "adapters", "daemon", "demo")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    source.mkdir()
    for name in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    command = [
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", str(out), str(source)),
    ]
    subprocess.run(command, check=True, cwd=out, capture_output=True)
    (built,) = out.glob("palorad-*.whl")
    return built


def test_every_file_of_the_packages_is_in_it(wheel: Path) -> None:
    here = {
        str(path.relative_to(ROOT))
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.suffix in {".py", ".toml", ".txt", ".jsonl"}
    }
    assert here <= set(zipfile.ZipFile(wheel).namelist())


def test_installed_in_an_empty_environment_it_runs_doctor(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    packages = Path(where.stdout.strip())
    # The locked dependencies from where they are, but for their .pth files: no editable install.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    install = [
        *(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"),
        *("--no-deps", "--no-index", "--ignore-installed", str(wheel)),
    ]
    subprocess.run(install, check=True, capture_output=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    doctor = subprocess.run(
        [home / "bin" / "palorad", "doctor", "--json", "--config", ROOT / "config.toml"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    findings = json.loads(doctor.stdout)
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert {"module policies", "module adapters", "module daemon"} <= {f["what"] for f in findings}
    shown = subprocess.run(
        [python, "-c", "import daemon, demo; print(daemon.__file__, demo.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(path.startswith(str(home)) for path in shown.stdout.split())
