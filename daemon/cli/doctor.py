"""`palorad config check`, `config show` and `doctor`: is everything there that a start needs?"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
from rich.table import Table

from adapters import base_config, probe_size
from daemon.cli.exit_codes import PASS, USAGE
from daemon.cli.host_check import host_findings, process_findings
from daemon.cli.known_check import known_findings
from daemon.cli.session import console, print_json, say
from daemon.cli.suite_check import CheckResult, gate_findings

if TYPE_CHECKING:
    from daemon.config.settings import Settings

ROOM_MB = 500
CARD = "probe.json"


def check_config(path: Path, settings: Settings) -> int:
    """Say which settings cannot work, and what the probe needs; 0 when all can."""
    probe = list(_probe(settings))
    files = [*_files(settings), *process_findings(settings)]
    bad = [f for f in (*files, *probe) if not f.well]
    for finding in bad:
        say(f"{finding.what}: {finding.advice}")
    for finding in files:
        if finding.well and finding.advice:
            say(f"warning: {finding.what}: {finding.advice}")
    if not bad:
        for finding in probe:
            say(finding.what)
        say(f"{path}: good")
    return USAGE if bad else PASS


def show_config(settings: Settings, as_json: bool) -> None:
    """Every key with its value, dotted."""
    tree = settings.model_dump(mode="json")
    if as_json:
        print_json(tree)
        return
    for key, value in _flat(tree):
        say(f"{key} = {value!r}")


def _flat(tree: object, key: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _flat(value, f"{key}.{name}" if key else name)
    elif isinstance(tree, list) and tree and isinstance(tree[0], Mapping):
        for number, value in enumerate(tree):
            yield from _flat(value, f"{key}[{number}]")
    else:
        yield key, tree


def examine(path: Path, settings: Settings, as_json: bool) -> int:
    """Everything a first start needs; 0 when all is well."""
    findings = [
        CheckResult(f"configuration {path}", True),
        *_names(),
        *_files(settings),
        *_probe(settings),
        *_state(settings.state_dir),
        *host_findings(settings),
        *_server(settings),
        *known_findings(settings),
    ]
    if as_json:
        print_json([f._asdict() for f in findings])
    else:
        table = Table("", "what", "what to do", show_header=False, box=None)
        for finding in findings:
            table.add_row(_word(finding), finding.what, finding.advice)
        console.print(table)
    return PASS if all(f.well for f in findings) else USAGE


def _word(finding: CheckResult) -> str:
    if finding.well:
        return "look" if finding.advice else "good"
    return "BAD"


def _names() -> Iterator[CheckResult]:
    """Whether the three packages are ours; 0001-import-names.md says why they could not be."""
    home = Path(__file__).resolve().parents[2]
    for name in ("policies", "adapters", "daemon"):
        spec = importlib.util.find_spec(name)
        where = Path(spec.origin).resolve().parent.parent if spec and spec.origin else None
        yield CheckResult(
            f"module {name}",
            where == home,
            "" if where == home else f"{where} has taken the name: give palorad its own venv",
        )


def _files(settings: Settings) -> Iterator[CheckResult]:
    model = settings.model.path
    there = (model / "config.json").is_file()
    advice = "" if there else "no config.json there; correct model.path"
    if (method := base_config.quantisation(model)) is not None:
        advice = base_config.refusal(method)
    yield CheckResult(f"model {model}", not advice, advice)
    replay = settings.train.replay
    for key, path in (
        ("probe.skill", settings.probe.skill),
        ("train.replay.known", replay.known),
        ("train.replay.reasoning", replay.reasoning),
    ):
        if path is not None:
            there = path.is_file()
            yield CheckResult(f"{key} {path}", there, "" if there else f"not there; correct {key}")
    yield from gate_findings(settings)
    if settings.server.kind == "vllm" and settings.server.mode == "managed":
        found = shutil.which(settings.server.executable)
        advice = "" if found else "not found; run 'make setup-vllm' or correct server.executable"
        yield CheckResult(f"server.executable {settings.server.executable}", bool(found), advice)


def _probe(settings: Settings) -> Iterator[CheckResult]:
    """Whether adapters have room beside what is protected, and what the probe takes."""
    shapes = _shapes(settings.model.path)
    if shapes is None:
        return
    protection, train, share = settings.protection, settings.train, settings.protection.share
    if "activations" in protection.kind and protection.form == "hard":
        rank = train.rank if train.lineage == "stack" else train.rank_budget
        crowded = probe_size.crowded(shapes, share, rank)
        if crowded is not None:
            advice = f"{crowded}; lower protection.share or the adapters' rank"
            yield CheckResult(f"protection.share {share:g}", False, advice)
    for directory in sorted(path.parent for path in settings.layout.probes.glob(f"*/{CARD}")):
        lacking = _lacking(directory, shapes, share)
        if lacking:
            advice = f"{lacking}; lower protection.share, or remove the probe to fit a new one"
            yield CheckResult(f"probe {directory}", False, advice)
    yield _needs(settings, shapes)


def _needs(settings: Settings, shapes: probe_size.Shapes) -> CheckResult:
    by_svf = "svf" in settings.protection.kind
    need = probe_size.need(
        shapes,
        settings.protection.share,
        svf=by_svf or settings.probe.serve == "expert",
        keep_bases=by_svf,
    )
    what = (
        f"probe of {shapes.layers} layers, {shapes.hidden} and {shapes.intermediate} wide: "
        f"{_size(need.disk)} on disk ({_size(need.fit_disk)} while it is fitted); beside the "
        f"model {_size(need.fit_memory)} of memory to fit it, {_size(need.train_memory)} to train"
    )
    named = settings.probe.path
    fitted = (*settings.layout.probes.glob("*"), *([] if named is None else [named]))
    there = any(_lacking(one, shapes, settings.protection.share) == "" for one in fitted)
    nearest = next(p for p in (settings.state_dir, *settings.state_dir.parents) if p.exists())
    room = there or shutil.disk_usage(nearest).free >= need.fit_disk
    return CheckResult(what, room, "" if room else f"make room in {nearest}")


def _lacking(directory: Path, shapes: probe_size.Shapes, share: float) -> str | None:
    """Which directions a probe lacks, "" if none; None if it is no probe of such a model."""
    try:
        card = json.loads((directory / CARD).read_text())
        inputs = [int(matrix["inputs"]) for matrix in card["matrices"].values()]
        if set(inputs) != set(shapes.inputs) or len(inputs) != 3 * shapes.layers:
            return None
        return probe_size.shortfall(card, share) or ""
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _shapes(model: Path) -> probe_size.Shapes | None:
    try:
        config = json.loads((model / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return probe_size.Shapes.of(config) if isinstance(config, dict) else None


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _state(folder: Path) -> Iterator[CheckResult]:
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    if not nearest.is_dir():
        yield CheckResult(f"state_dir {folder}", False, f"{nearest} is a file; correct state_dir")
        return
    writable = os.access(nearest, os.W_OK | os.X_OK)
    yield CheckResult(
        f"state_dir {folder}", writable, "" if writable else f"no right to write in {nearest}"
    )
    free = shutil.disk_usage(nearest).free // 2**20
    yield CheckResult(
        f"{free} MB free", free >= ROOM_MB, "" if free >= ROOM_MB else f"make room in {nearest}"
    )


def _server(settings: Settings) -> Iterator[CheckResult]:
    for url in settings.server.urls:
        healthy = _healthy(url)
        if settings.server.mode == "attach":
            advice = "" if healthy else "no answer from /health; start the server there"
            yield CheckResult(f"server {url}", healthy, advice)
        elif healthy:
            yield CheckResult(f"server {url} answers", True)
        else:
            taken = _taken(url)
            advice = "something else listens there; stop it or correct server.urls" if taken else ""
            yield CheckResult(f"port of {url} is free", not taken, advice)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=3.0).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _taken(url: str) -> bool:
    parts = urlsplit(url)
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((parts.hostname or "127.0.0.1", parts.port or 80)) == 0
