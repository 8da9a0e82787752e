"""The real daemon over the committed small model, as the slow tests run it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from daemon.config.settings import Settings
from demo.follow import Follow
from demo.setup import MODEL, DaemonProcess, DemoOptions, dump, write_config

NEEDS_MODEL = pytest.mark.skipif(
    not (MODEL / "model.safetensors").exists() or not (MODEL / "probe").is_dir(),
    reason="palorad-mini and its probe are not here",
)


def configure(
    folder: Path, options: DemoOptions | None = None, **changed: Mapping[str, Any]
) -> Path:
    """The demonstration's settings with the loosest gate, for time's sake, and what a test changes.

    The embedded default on palorad-mini where no `options` say otherwise.
    """
    path = write_config(folder, options or DemoOptions())
    tree = tomllib.loads(path.read_text())
    tree["gate"]["preset"] = "fast"
    tree["intake"]["stable_s"] = 0.1
    for section, values in changed.items():
        tree[section] |= values
    path.write_text(dump(tree))
    return path


@contextmanager
def running(config: Path) -> Iterator[Follow]:
    """`palorad run` with this configuration, followed from outside, once it serves."""
    daemon = DaemonProcess(config, config.parent / "daemon.log")
    try:
        follow = Follow(Settings.load(config), daemon)
        follow.until_serving()
        yield follow
    finally:
        daemon.stop()
