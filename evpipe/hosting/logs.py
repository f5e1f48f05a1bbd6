"""structlog as a hosting process sets it up: warnings on the console, everything as JSON elsewhere if asked."""

from __future__ import annotations

import logging
import os
import sys

import structlog

from evpipe.errors import UsageError

VARIABLE = "EVPIPE_LOG"
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logs(default: str = "warning") -> None:
    """Configure structlog, unless the program that embeds evpipe has done so.

    The level is that of `EVPIPE_LOG` (debug, info, warning, error), else `default`. Logs go to standard error:
    standard output belongs to results.
    """
    if structlog.is_configured():
        return
    level = os.environ.get(VARIABLE, default).lower()
    if level not in LEVELS:
        raise UsageError(f"{VARIABLE} must be one of {', '.join(LEVELS)}, not {level!r}")
    console = sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer()
    )
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if not console:
        processors.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
