"""The demonstration's surroundings: its configuration, its daemon process, its files."""

from __future__ import annotations

import ctypes
import json
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.scenario import MINI, ROOT, Scenario
from policies.errors import PaloradError

MODEL = MINI.model
METHODS = ("palorad", "palora")
STOP_S = 20.0


class DemoFailed(PaloradError):
    """The demonstration could not go on."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line says; `model` is the scenario's own but in tests."""

    scenario: Scenario = MINI
    model: Path | None = None
    facts: tuple[Path, ...] = ()
    keep: Path | None = None
    fit_probe: bool = False
    server: str = "embedded"
    method: str = "palorad"
    items: int = 800
    report: Path | None = None
    picture: Path | None = None

    @property
    def base(self) -> Path:
        """The model's folder."""
        return self.model or self.scenario.model


def fact_files(options: DemoOptions) -> tuple[Path, ...]:
    """The files to drop, in their order; the first committed ones unless others are named."""
    folder = options.scenario.facts
    files = options.facts or tuple(sorted(folder.glob("*.jsonl"))[: options.scenario.files])
    if not files:
        raise DemoFailed(f"there are no files of facts in {folder}")
    stems = [f.stem for f in files]
    if len(set(stems)) != len(stems):
        raise DemoFailed(f"two files have the same name: {', '.join(stems)}")
    return tuple(f.resolve() for f in files)


def check_parts(options: DemoOptions) -> None:
    """Fail early and clearly when a part of the repository is missing."""
    if options.server not in ("embedded", "vllm"):
        raise DemoFailed(f"--server {options.server}: it is embedded or vllm")
    if options.method not in METHODS:
        raise DemoFailed(f"--method {options.method}: it is {' or '.join(METHODS)}")
    scenario = options.scenario
    parts = (scenario.false_facts, options.base / "config.json", scenario.data)
    for path in (ROOT / "config.toml", *parts):
        if not path.exists():
            raise DemoFailed(f"{path} is missing: {scenario.missing}")
    if options.server == "vllm" and not _vllm().exists():
        raise DemoFailed(f"there is no vLLM at {_vllm()}; install it with 'make setup-vllm'")


def _vllm() -> Path:
    return ROOT / ".venv-vllm" / "bin" / "vllm"


def write_config(folder: Path, options: DemoOptions) -> Path:
    """The repository's own config.toml with absolute paths, a free port and a state in `folder`."""
    tree = tomllib.loads((ROOT / "config.toml").read_text())
    tree["state_dir"] = str(folder / "state")
    tree["model"]["path"] = str(options.base)
    _absolute(tree["probe"], "skill", "path")
    _absolute(tree["train"]["replay"], "known", "reasoning")
    _adapt(tree, options.scenario)
    if options.fit_probe:
        tree["probe"]["path"] = str(folder / "no-probe-yet")
    # What was not learnt is named and not tried again: a further plan would take minutes.
    tree["train"]["relearn"] = 0
    # Files are renamed into the inbox when they are whole.
    tree["intake"]["stable_s"] = 0.5
    tree["server"]["urls"] = [f"http://127.0.0.1:{free_port()}"]
    tree["server"]["kind"] = options.server
    tree["train"]["method"] = options.method
    tree["web"]["port"] = free_port()
    if options.server == "vllm":
        tree["server"]["executable"] = str(_vllm())
    path = folder / "config.toml"
    path.write_text("# palorad demo: the embedded default with its own state\n" + dump(tree))
    return path


def _adapt(tree: dict[str, Any], scenario: Scenario) -> None:
    """The settings and suites of a scenario in place of the repository's."""
    for section, changes in scenario.settings.items():
        for key, value in changes.items():
            both = isinstance(value, Mapping)
            tree[section][key] = {**tree[section][key], **value} if both else value
    for suite in tree["gate"]["suites"]:
        suite["path"] = str(scenario.data / Path(suite["path"]).name)
        suite.update(scenario.suite)


def _absolute(table: dict[str, Any], *keys: str) -> None:
    for key in keys:
        if table.get(key):
            table[key] = str(ROOT / table[key])


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def dump(tree: Mapping[str, Any], prefix: str = "") -> str:
    """A nested mapping of plain values as TOML."""
    plain = [k for k, v in tree.items() if not _is_table(v)]
    lines = [f"{key} = {json.dumps(tree[key])}" for key in plain]
    for key, value in tree.items():
        if isinstance(value, Mapping):
            lines += [f"\n[{prefix}{key}]", dump(value, f"{prefix}{key}.")]
        elif _is_table(value):
            for row in value:
                lines += [f"\n[[{prefix}{key}]]", dump(row, f"{prefix}{key}.")]
    return "\n".join(lines)


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)
    )


class DaemonProcess:
    """`palorad run` as a child in its own session; it dies with the demonstration."""

    def __init__(self, config: Path, log: Path) -> None:
        self.log = log
        self._sink = log.open("ab")
        self._child = subprocess.Popen(
            [sys.executable, "-m", "daemon.cli.main", "run", "--config", str(config)],
            stdout=self._sink,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - nothing here runs threads
        )

    def check(self) -> None:
        """Raise `DemoFailed` with the last lines of its log if it has ended."""
        code = self._child.poll()
        if code is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])
            raise DemoFailed(f"the daemon ended with code {code}; its last lines:\n{tail}")

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for whatever is left of its session."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            try:
                self._child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._sink.close()


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
