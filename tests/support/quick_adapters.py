"""Worker steps that publish real adapters of a tiny model, prepared beforehand, without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from adapters import store
from daemon.base import faults
from daemon.children.worker import StepContext
from daemon.ledger.records import Adapter, Served
from daemon.training.messages import TrainDone, TrainRequest
from tests.support.fake_steps import evaluate, probe

__all__ = ["evaluate", "prepare", "probe", "train"]

LIBRARY = "library"
_PREPARE = """
import sys
from pathlib import Path
import torch
from adapters.generate import Generator
from tests.support import live, tiny
root, count = Path(sys.argv[1]), int(sys.argv[2])
model = tiny.build(root / "model")
generator = Generator(model, max_rank=16, device=torch.device("cpu"))
for number in range(count):
    name = live.publish(generator, root / "library", number).served_name
    (root / "library" / name).rename(root / "library" / str(number))
"""


def prepare(root: Path, count: int = 8) -> Path:
    """A tiny model below `root`, and `count` adapters with their identities; the model's path."""
    (root / LIBRARY).mkdir(parents=True)
    subprocess.run([sys.executable, "-c", _PREPARE, str(root), str(count)], check=True)
    return root / "model"


def train(desk: StepContext) -> TrainDone:
    """Publish the next adapter of the library, marked with what it is said to have learnt."""
    request = TrainRequest.model_validate_json(desk.request)
    library = request.model_dir.parent / LIBRARY
    chosen = library / str(request.number % len(list(library.iterdir())))
    marks = {
        "facts": [fact.id for fact in request.facts],
        "seed": request.seed,
        "number": request.number,
        "lineage": list(request.lineage_sha256),
    }
    staging = _copy(chosen, request.adapters, desk.workdir.name, marks)
    adapter = store.publish(staging, request.adapters, {})
    faults.point("train:adapter-published")
    staging = _copy(chosen, request.served, desk.workdir.name, marks)
    served = store.publish(
        staging, request.served, {}, lambda sha: f"palora-{request.number:06}-{sha[:8]}"
    )
    return TrainDone(
        adapter=Adapter(sha256=_sha(adapter), rank=request.rank),
        served=Served(name=served.name, sha256=_sha(served)),
        rank=request.rank,
        report={},
        seconds={},
    )


def _copy(chosen: Path, parent: Path, name: str, marks: dict[str, object]) -> Path:
    staging = store.staging(parent, name)
    for file in chosen.iterdir():
        if file.name != store.MANIFEST:
            shutil.copyfile(file, staging / file.name)
    (staging / "marks.json").write_text(json.dumps(marks))
    return staging


def _sha(directory: Path) -> str:
    return str(store.read_manifest(directory)["sha256"])
