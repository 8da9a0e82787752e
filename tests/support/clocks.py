"""A wall clock that a test sets while the daemon runs, as an operator or NTP would."""

from __future__ import annotations

import datetime as real
import os
import sys
import time
from pathlib import Path
from typing import Any

VARIABLE = "PALORAD_TEST_CLOCK"
LEFT = ("pydantic", "pydantic_core")  # they look for the one class, not for what stands for it


def put(file: Path, by: real.timedelta) -> None:
    """From now on the clock of whoever obeys `file` is wrong by this much."""
    beside = file.with_suffix(".tmp")
    beside.write_text(str(by.total_seconds()))
    beside.replace(file)


def obey() -> None:
    """Have this process tell the time as the file says that the environment names."""
    if not (name := os.environ.get(VARIABLE)):
        return
    file, tells = Path(name), time.time

    def wrong_by() -> float:
        return float(file.read_text()) if file.exists() else 0.0

    class Kind(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, real.datetime)

    class Wrong(real.datetime, metaclass=Kind):
        @classmethod
        def now(cls, tz: real.tzinfo | None = None) -> Any:
            return real.datetime.now(tz) + real.timedelta(seconds=wrong_by())

    time.time = lambda: tells() + wrong_by()
    for module in list(sys.modules.values()):
        left = module.__name__.split(".")[0] in LEFT
        if not left and vars(module).get("datetime") is real.datetime and module is not real:
            vars(module)["datetime"] = Wrong
