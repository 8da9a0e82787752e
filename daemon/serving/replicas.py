"""The replicas that the settings name, and the fleet they form."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from daemon.config.settings import Settings
from daemon.serving import keys
from daemon.serving.base_record import BaseRecord
from daemon.serving.client import HttpServer, Timeouts
from daemon.serving.common import Common
from daemon.serving.fleet import Fleet
from daemon.serving.identity import CLOSE, EXACT, Tolerance
from daemon.serving.server_command import has_gpu
from daemon.serving.turns import Turns
from policies.errors import ConfigError, DiskFull


def connect(settings: Settings) -> tuple[HttpServer, ...]:
    """One client for each URL; makes the admin key where the settings name none."""
    server = settings.server
    user_key = None if server.user_key_file is None else _key(server.user_key_file)
    admin_key = _admin_key(settings)
    timeouts = Timeouts(request_s=server.request_timeout_s, load_s=server.load_timeout_s)
    return tuple(
        HttpServer(url, admin_key=admin_key, user_key=user_key, timeouts=timeouts)
        for url in server.urls
    )


def fleet(
    settings: Settings,
    servers: Sequence[HttpServer],
    restart: Callable[[str], Awaitable[None]] | None = None,
) -> Fleet:
    """All of them behind the alias of the settings."""
    common = Common(
        alias=settings.model.alias,
        base=settings.model.name,
        served=settings.layout.served,
        drain_s=settings.server.drain_s,
        verify_timeout_s=settings.server.verify_timeout_s,
        tolerance=tolerance(),
        restart=restart,
        turns=Turns(settings.server.replicas_at_once),
        base_record=BaseRecord(
            settings.layout.base_record,
            settings.state_dir,
            settings.model.path if settings.probe.serve == "base" else None,
        ),
    )
    return Fleet(servers, settings.layout.alias, common)


def tolerance() -> Tolerance:
    """Every token must be the same where training and serving both compute in fp32."""
    return CLOSE if has_gpu() else EXACT


def _admin_key(settings: Settings) -> str:
    if settings.server.admin_key_file is not None:
        return keys.read(settings.server.admin_key_file)
    try:
        return keys.ensure(settings.layout.admin_key)
    except OSError as error:
        kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else ConfigError
        raise kind(f"{settings.layout.admin_key}: {error.strerror}") from error


def _key(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
