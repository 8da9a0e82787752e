"""What runs on a node: one attempt as a child process, watched until it ends or is superseded."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from daemon.children.endings import oom_kills
from daemon.children.request import RECORD
from daemon.children.threads import threads
from daemon.cluster.attempts import is_current

POLL_S: Final = 0.1
LOOK_S: Final = 1.0
STOP_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended on a node: the child's exit status, None where none was started or it
    was superseded; and how many processes the node's kernel has killed meanwhile for memory."""

    node: str
    code: int | None
    oom_kills: int = 0


def run_step(step: str, attempt: str, environment: Mapping[str, str]) -> Ended:
    """Do a step in the folder of an attempt, by the same child process as without a cluster.

    The child dies with this process. It is killed as soon as another attempt has taken the place
    of this one. An interrupt asks it to stop at its next checkpoint.
    """
    workdir, node, killed = Path(attempt), platform.node(), oom_kills()
    if not (workdir / RECORD).is_file() or not is_current(workdir):
        return Ended(node, None)
    with (workdir / "log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "daemon.children.worker", step, attempt],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **threads(), **environment, "PALORAD_PARENT": str(os.getpid())},
        )
    try:
        code = _watched(child, workdir)
    except KeyboardInterrupt:
        child.terminate()
        _wait(child, STOP_S)
        raise
    finally:
        child.kill()
        child.wait()
    return Ended(node, code, oom_kills() - killed)


def _watched(child: subprocess.Popen[bytes], workdir: Path) -> int | None:
    look_at = time.monotonic() + LOOK_S
    while (code := child.poll()) is None:
        if time.monotonic() >= look_at:
            if not is_current(workdir):
                return None
            look_at = time.monotonic() + LOOK_S
        # Short: Ray's interrupt waits for it.
        time.sleep(POLL_S)
    return code


def _wait(child: subprocess.Popen[bytes], seconds: float) -> None:
    end = time.monotonic() + seconds
    while child.poll() is None and time.monotonic() < end:
        time.sleep(POLL_S)
