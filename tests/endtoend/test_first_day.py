"""A model that palorad has never seen: init, and a first file live, by the steps that it prints."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.config.settings import Settings
from demo.follow import Follow
from demo.newcomer import NAME, newcomer
from demo.setup import ROOT, DaemonProcess
from tests.support.real import NEEDS_MODEL

pytestmark = [pytest.mark.endtoend, pytest.mark.timeout(1500), NEEDS_MODEL]


def palorad(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """A command as a user types it in a folder."""
    words = [sys.executable, "-m", "daemon.cli.main", *shlex.split(command)[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        words, capture_output=True, text=True, check=False, cwd=folder, env=environment
    )


def steps(out: str) -> list[str]:
    """The commands that init prints at its end, without what it says beside them."""
    printed = out.partition("next:\n")[2].splitlines()
    return [line.partition("  #")[0].strip() for line in printed if re.match(r"  (cd|pal)", line)]


def test_a_new_user_gets_a_first_file_live_by_the_printed_steps_alone(tmp_path: Path) -> None:
    newcomer(tmp_path)
    made = palorad(
        tmp_path,
        f"palorad init --model models/{NAME} --dir first --logs requests.jsonl "
        "--skill problems.jsonl --problems 900 --yes",
    )
    assert made.returncode == 0, made.stdout + made.stderr
    go, doctor, run, submit, why = steps(made.stdout)
    assert run == "palorad run"
    folder = tmp_path / go.removeprefix("cd ")
    examined = palorad(folder, doctor)
    assert examined.returncode == 0, examined.stdout
    config = folder / "config.toml"
    daemon = DaemonProcess(config, tmp_path / "daemon.log")
    try:
        Follow(Settings.load(config), daemon).until_serving()
        submitted = palorad(folder, submit)
        explained = palorad(folder, "palorad explain first.jsonl").stdout
        assert submitted.returncode == 0, explained
        answered = palorad(folder, why).stdout
        assert re.search(r"the alias answers “.*Kestrel", answered), answered
    finally:
        daemon.stop()
