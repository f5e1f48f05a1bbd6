"""What is told of an exception that ended a step's body."""

from __future__ import annotations

import traceback

from evpipe.core.events import Failure
from evpipe.wire.limits import MESSAGE_CHARS_MAX, TRACEBACK_CHARS_MAX


def failure_of(error: BaseException) -> Failure:
    """Describe an exception; never raises, whatever the exception's own methods do."""
    name = type(error).__name__
    try:
        text = str(error)
    except Exception as second:  # noqa: BLE001 - a user's __str__ may raise anything
        text = f"<its __str__ raised {type(second).__name__}>"
    text = text[:MESSAGE_CHARS_MAX]
    try:
        # The first frame is the worker's own.
        shown = "".join(traceback.format_exception(type(error), error, _past_worker(error)))
    except Exception as second:  # noqa: BLE001 - likewise
        shown = f"<the traceback cannot be shown: {type(second).__name__}>"
    types = tuple(f"{cls.__module__}.{cls.__qualname__}" for cls in type(error).__mro__ if cls is not object)
    # Cut where it is made: a traceback of a deep recursion is megabytes.
    return Failure(
        message=f"{name}: {text}" if text else name, types=types, traceback=shown[-4 * TRACEBACK_CHARS_MAX :]
    )


def _past_worker(error: BaseException) -> object:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").startswith("evpipe.worker"):
        frames = frames.tb_next
    return frames or error.__traceback__
