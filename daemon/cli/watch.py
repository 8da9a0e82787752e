"""`palorad watch`: the status live in a terminal, with bars and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from daemon.base.display import harmless_value
from daemon.cli.tables import clock, status_view
from daemon.client import Client
from daemon.views.status import StatusView
from policies.errors import PaloradError
from policies.text import harmless

if TYPE_CHECKING:
    from daemon.config.settings import Settings

BAR: Final = 40


def watch(
    settings: Settings,
    every_s: float,
    console: Console,
    *,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    rounds: int | None = None,
) -> None:
    """Show the status again and again until Ctrl-C, or `rounds` times; it is printed anew only when
    it has changed where the output is no terminal."""
    turns = count() if rounds is None else range(rounds)
    try:
        if console.is_terminal:
            with Live(console=console, auto_refresh=False) as live:
                for shown in _shown(settings, turns, every_s, sleep, now):
                    live.update(Group(Text(clock(now()), style="dim"), shown), refresh=True)
        else:
            before = ""
            for shown in _shown(settings, turns, every_s, sleep, now):
                with console.capture() as captured:
                    console.print(shown)
                if (text := captured.get()) != before:
                    console.print(Text(clock(now())), Text(text), sep="\n", end="")
                    before = text
    except KeyboardInterrupt:
        return


def _shown(
    settings: Settings,
    turns: Iterator[int] | range,
    every_s: float,
    sleep: Callable[[float], None],
    now: Callable[[], datetime],
) -> Iterator[RenderableType]:
    for turn in turns:
        if turn:
            sleep(every_s)
        try:
            view = Client(settings).status(now())
        except PaloradError as error:
            yield Text(harmless(str(error)), style="yellow")
        else:
            yield live_view(harmless_value(view))


def live_view(view: StatusView) -> RenderableType:
    """The status, below it a bar for each stage whose length is known."""
    bars: list[RenderableType] = [
        ProgressBar(total=stage.progress.total, completed=stage.progress.done, width=BAR)
        for stage in view.stages
        if stage.progress is not None and stage.progress.total
    ]
    return Group(status_view(view), *bars)
