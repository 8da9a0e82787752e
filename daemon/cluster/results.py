"""What an attempt has made, taken over by the one process that may publish it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from adapters import files, store
from adapters.errors import StoreConflict
from daemon.cluster import attempts
from daemon.cluster.attempts import NodeAttempt
from daemon.gate.judge_model import judge_sha256
from daemon.gate.messages import JudgeSource
from daemon.training.messages import TrainDone
from policies.planning import Step

OUTPUTS: Final[Mapping[str, tuple[str, ...]]] = {
    Step.TRAIN: ("adapters", "served", "records"),
    Step.EVALUATE: ("answers",),
}
"""The keys of a stage's request that name folders it writes to."""


def hand_over(step: str, workdir: Path, attempt: NodeAttempt) -> None:
    """Put what earlier attempts and stages have found into the folders of an attempt."""
    asked = _asked(workdir)
    if step == Step.TRAIN and asked.get("records"):
        # Files that are replaced, never changed: two names for one are safe.
        attempts.link_tree(Path(asked["records"]), attempt.path / "records")
    if step == Step.EVALUATE:
        _copy_answers(asked, attempt)


def take(step: str, workdir: Path, attempt: NodeAttempt, report: Mapping[str, Any]) -> None:
    """Publish what the attempt reports. Doing it twice is doing it once.

    Raises `StoreConflict` where it is not there, or not whole. To be called by whoever holds the
    lock of `workdir`.
    """
    _TAKE[step](_asked(workdir), attempt.path, report)


def _trained(asked: Mapping[str, Any], attempt: Path, report: Mapping[str, Any]) -> None:
    done = TrainDone.model_validate(report)
    _publish(attempt / "adapters" / done.adapter.sha256[:12], Path(asked["adapters"]))
    _publish(attempt / "served" / done.served.name, Path(asked["served"]))
    if asked.get("records"):
        _take_records(attempt / "records", Path(asked["records"]))


def _publish(source: Path, parent: Path) -> None:
    if not source.is_dir():  # taken before
        _require_whole(parent / source.name)
        return
    _require_whole(source)
    about = store.read_manifest(source)
    kept = {key: value for key, value in about.items() if key not in ("sha256", "files")}
    store.publish(source, parent, kept, lambda _: source.name)


def _require_whole(directory: Path) -> None:
    if problems := store.verify(directory):
        raise StoreConflict(f"{directory}: {problems[0]}")


def _take_records(source: Path, folder: Path) -> None:
    """The attempt's records in place of those that were there; what is lost is computed again."""
    found = {path.name: path for path in source.glob("[!.]*")}
    if not found:
        return
    files.make_folder(folder)
    for name, path in found.items():
        path.replace(folder / name)
    for path in folder.glob("[!.]*"):
        if path.name not in found:
            path.unlink(missing_ok=True)


def _copy_answers(asked: Mapping[str, Any], attempt: NodeAttempt) -> None:
    """The answers that this evaluation may read and add to, copied: they are changed in place."""
    served = [asked["evaluation"][role] for role in ("base", "live", "candidate")]
    models = [one["sha256"] for one in served if one]
    if asked["judge"]:
        models.append(judge_sha256(JudgeSource.model_validate(asked["judge"])))
    target = attempt.path / "answers"
    earlier = attempts.before(attempt)
    source = Path(asked["answers"])
    if earlier is not None and (earlier / "answers").is_dir():
        source = earlier / "answers"
    cards = source.glob("*/*.json")
    for path in (*cards, *(p for m in models for p in (source / m[:12]).glob("*.jsonl"))):
        copied = target / path.relative_to(source)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)
    target.mkdir(exist_ok=True)


def _judged(asked: Mapping[str, Any], attempt: Path, report: Mapping[str, Any]) -> None:
    """Add the answers to those that are kept; what somebody has changed meanwhile is left alone."""
    answers = Path(asked["answers"])
    for path in sorted((attempt / "answers").rglob("[!.]*.json*")):
        kept, found = answers / path.relative_to(attempt / "answers"), path.read_bytes()
        before = kept.read_bytes() if kept.exists() else b""
        grown = path.suffix == ".json" or found.startswith(before)
        if found != before and grown:
            files.make_folder(kept.parent)
            files.write_bytes(kept, found)


def _asked(workdir: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((workdir / "request.json").read_text())
    return record


_TAKE: Final[Mapping[str, Callable[[Mapping[str, Any], Path, Mapping[str, Any]], None]]] = {
    Step.TRAIN: _trained,
    Step.EVALUATE: _judged,
}
