"""How the daemon logs: one line an event on standard error."""

from __future__ import annotations

import logging
import sys

import structlog

from daemon.base.display import LogFormatter, harmless_event


def configure_log(level: str) -> None:
    """Log from `level` on: for people on a terminal, JSON for everything else."""
    libraries = logging.StreamHandler(sys.stderr)
    libraries.setFormatter(LogFormatter(logging.BASIC_FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=[libraries])
    terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            harmless_event,
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
