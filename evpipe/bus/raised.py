"""How an exception that nobody expected is logged, whoever renders the logs.

structlog's own way, unless a program configures another, draws the traceback with the local variables of every frame:
pages for each exception, with the values of users in them.
"""

from __future__ import annotations

from traceback import TracebackException
from typing import Any


def log_raised(log: Any, event: str, error: BaseException, **said: Any) -> None:
    """Log an exception as an error: its type and message in the line, then the plain traceback, without any locals.

    Args:
        log: a logger of structlog.
        event: what happened, as in "hook_failed".
        said: what else the line says.
    """
    # It also writes an exception that cannot be made a text.
    raised = TracebackException.from_exception(error)
    # What is called `stack` is written as it is; of an `exc_info` each renderer makes what it likes.
    log.error(event, **said, error=f"{type(error).__name__}: {raised}", stack="".join(raised.format()).rstrip())
