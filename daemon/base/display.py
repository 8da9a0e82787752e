"""Whatever is shown on a terminal or written to a log passes here: text that only can be read.

What counts as harmless is `policies.text.harmless`; nothing else decides it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, MutableMapping
from enum import Enum
from types import TracebackType
from typing import Any, TypeVar, cast

from pydantic import BaseModel
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from policies.text import harmless

T = TypeVar("T")
_TRACEBACK = "    "


class HarmlessConsole(Console):
    """A console on which no text that is printed can do anything but be read."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments of what is printed; rich's own control codes are no text."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            clean = text if control else harmless(text, keep="\n")
            yield segment if clean == text else Segment(clean, style)


def harmless_value(value: T) -> T:
    """A record, list or dict like this one in which every text is one harmless line."""
    return cast("T", _harmless(value))


def _harmless(value: Any) -> Any:  # noqa: ANN401 - whatever a view holds
    if isinstance(value, Enum):
        return value
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, BaseModel):
        fields = {name: _harmless(getattr(value, name)) for name in type(value).model_fields}
        return value.model_copy(update=fields)
    if isinstance(value, dict):
        return {_harmless(key): _harmless(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_harmless, value))
    return value


def harmless_event(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """A log record of structlog on lines of its own; a traceback is indented, line by line."""
    return {
        key: _indented(value) if key == "exception" else _harmless(value)
        for key, value in event.items()
    }


class LogFormatter(logging.Formatter):
    """The same for what libraries log."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The record's own line."""
        return harmless(super().formatMessage(record))

    def formatException(  # noqa: N802 - logging's name
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        """Its traceback."""
        return _indented(super().formatException(ei))


def _indented(text: str) -> str:
    return "\n".join(_TRACEBACK + harmless(line) for line in text.split("\n"))
