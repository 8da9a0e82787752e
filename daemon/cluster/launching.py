"""Which stages go to the cluster."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from daemon.children.jobs import LOCAL, Launcher
from daemon.config.settings import Settings
from policies.planning import Step

MODULE: Final = "daemon.cluster.child"


def launchers(settings: Settings) -> Mapping[str, Launcher]:
    """By stage, how its child has it done elsewhere; the probe is always fitted where the daemon
    runs, and an evaluation where the server's address can be reached.
    """
    if settings.train.launcher == "local":
        return LOCAL
    launcher = Launcher(MODULE, settings.train.ray)
    asked = [settings.server.urls[0]]
    if settings.gate.judge.url and settings.gate.judge.model:
        asked.append(settings.gate.judge.url)
    stages = [Step.TRAIN] if any(map(_loopback, asked)) else [Step.TRAIN, Step.EVALUATE]
    return {stage.value: launcher for stage in stages}


def _loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
