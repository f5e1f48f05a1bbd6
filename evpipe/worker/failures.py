"""What is told of an exception that ended a step's body."""

from __future__ import annotations

import traceback
from types import TracebackType

from evpipe.core.events import Failure
from evpipe.wire.limits import MESSAGE_CHARS_MAX, TRACEBACK_CHARS_MAX


def failure_of(error: BaseException) -> Failure:
    """Describe an exception; never raises, whatever the exception's own methods do."""
    name = type(error).__name__
    text = text_of(error)
    try:
        # The first frame is the worker's own.
        shown = "".join(traceback.format_exception(type(error), error, _past_worker(error)))
    except Exception as second:  # noqa: BLE001 - likewise
        shown = f"<the traceback cannot be shown: {type(second).__name__}>"
    # Cut where it is made: a traceback of a deep recursion is megabytes.
    return Failure(
        message=f"{name}: {text}" if text else name,
        types=types_of(type(error)),
        traceback=shown[-4 * TRACEBACK_CHARS_MAX :],
    )


def text_of(error: BaseException) -> str:
    """Give what an exception says of itself, cut to a limit."""
    try:
        text = str(error)
    except Exception as second:  # noqa: BLE001 - a user's __str__ may raise anything
        text = f"<its __str__ raised {type(second).__name__}>"
    return text[:MESSAGE_CHARS_MAX]


def timeout_failure(timeout_s: float | None) -> Failure:
    """Describe an attempt that ran longer than it may."""
    return Failure(message=f"the attempt ran longer than {timeout_s:g} s", types=_TIMEOUT_TYPES)


def types_of(cls: type[BaseException]) -> tuple[str, ...]:
    return tuple(f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__ if base is not object)


_TIMEOUT_TYPES = types_of(TimeoutError)


def _past_worker(error: BaseException) -> TracebackType | None:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").startswith("evpipe.worker"):
        frames = frames.tb_next
    return frames or error.__traceback__
