"""One of several processes that train an adapter, started by torchrun in the leased child.

`python -m daemon.training.process WORKDIR OUT PARENT`, PARENT being the leased child's number.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from daemon.children.endings import EXIT_NO_ROOM, no_room
from daemon.children.jobs import JobError
from daemon.children.worker import Stopped, die_with_parent
from policies.errors import PaloradError

# Imported once this process is sure to die with its parent: that takes seconds. PALORAD_STEPS names
# another module, as it does for the leased child.
STEP: Final = "daemon.training.child"
GAVE_UP: Final = "gave-up-{}.json"
"""Why a process gave up, by its number."""
EXIT_GAVE_UP: Final = 1


def main(workdir: Path, out: Path, parent: str) -> int:
    """Train a share; 0 when it is done or was asked to stop, `EXIT_GAVE_UP` where a file in
    `workdir` says why it was not, and `EXIT_NO_ROOM` when there was no room on the disk."""
    die_with_parent(parent)
    os.environ["OMP_NUM_THREADS"] = str(_threads())
    try:
        module = importlib.import_module(os.environ.get("PALORAD_STEPS") or STEP)
        train_share: Callable[[Path, Path], None] = module.train_share
        train_share(workdir, out)
    except Stopped:
        return 0
    except Exception as error:
        if no_room(error):
            print(error, file=sys.stderr)
            return EXIT_NO_ROOM
        if not isinstance(error, PaloradError):
            raise
        told = JobError.of(error).model_dump_json()
        (workdir / GAVE_UP.format(os.environ["RANK"])).write_text(told)
        return EXIT_GAVE_UP
    return 0


def _threads() -> int:
    """This process's share of the threads that the leased child may have."""
    threads = int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0])
    return max(1, threads // int(os.environ["WORLD_SIZE"]))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
