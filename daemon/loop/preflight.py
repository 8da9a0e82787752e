"""What has to hold before the daemon starts, each failure one clear line."""

from __future__ import annotations

import errno
import importlib.util
import os
from pathlib import Path
from typing import Final

from adapters import base_config, files
from daemon.config.settings import Settings
from policies.errors import ConfigError, DiskFull, ForeignModule

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
PACKAGES: Final = ("policies", "adapters", "daemon")


def require_own_modules() -> None:
    """Raise `ForeignModule` where another distribution has taken one of our names."""
    home = Path(__file__).resolve().parents[2]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        where = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
        if where is None or where.parent.parent != home:
            raise ForeignModule(
                f"the module {name} is {where}, not palorad's in {home}: another distribution has "
                "taken the name; give palorad a virtual environment of its own"
            )


def require_files(settings: Settings) -> None:
    """Raise `ConfigError` for the first file that the settings name and that is not there, and for
    a model whose weights are quantised."""
    model = settings.model.path
    if not (model / "config.json").is_file():
        raise ConfigError(f"model.path {model}: there is no model (no config.json); correct it")
    if (method := base_config.quantisation(model)) is not None:
        raise ConfigError(f"model.path {model}: {base_config.refusal(method)}")
    replay = settings.train.replay
    named = {
        "probe.skill": settings.probe.skill,
        "train.replay.known": replay.known,
        "train.replay.reasoning": replay.reasoning,
        "server.admin_key_file": settings.server.admin_key_file,
        "server.user_key_file": settings.server.user_key_file,
        "web.token_file": settings.web.token_file,
        "notify.key_file": settings.notify.key_file,
    }
    for n, suite in enumerate(settings.gate.suites):
        if suite.task is None:
            named[f"gate.suites[{n}].path"] = suite.path
        elif suite.path is not None and not suite.path.is_dir():
            raise ConfigError(
                f"gate.suites[{n}].path {suite.path}: there is no such folder of tasks; correct it"
            )
    for key, path in named.items():
        if path is not None and not path.is_file():
            raise ConfigError(f"{key} {path}: there is no such file; correct it")


def prepare_state(settings: Settings) -> None:
    """Make the state directory and what belongs into it; raise `ConfigError` where that fails, and
    where a restore has not come to its end; `DiskFull` where there is no room for it."""
    if settings.layout.restoring.exists():
        raise ConfigError(
            f"state_dir: {settings.state_dir}: a restore was interrupted; give the same "
            "`palorad restore` once more"
        )
    for folder in settings.layout.directories():
        try:
            files.make_folder(folder)
        except OSError as error:
            if error.errno in FULL:
                raise DiskFull(f"{folder} cannot be made: {error.strerror}; make room") from None
            raise ConfigError(
                f"state_dir: {folder} cannot be made: {error.strerror}; "
                "correct state_dir or its rights"
            ) from None
    if not os.access(settings.state_dir, os.W_OK | os.X_OK):
        raise ConfigError(
            f"state_dir: {settings.state_dir} cannot be written by this user; correct its rights"
        )
