"""Runs inline and thread steps in this process, which has their code."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, Final

import anyio.to_thread

from evpipe.wire.extensions import LEAVES
from evpipe.wire.messages import LaunchOrder
from evpipe.wire.subjects import LaunchSubject
from evpipe.worker.attempt_files import AttemptFiles
from evpipe.worker.code import CodeNotFound, find_function
from evpipe.worker.conclusion import Conclusion, conclude_value
from evpipe.worker.executors.inline import run_inline
from evpipe.worker.executors.thread import run_in_thread

_WAYS = {"inline": run_inline, "thread": run_in_thread}
#: Values that are encoded in less time than a thread takes to begin.
_LIGHT_ITEMS_MAX: Final = 256
_LIGHT_CHARS_MAX: Final = 64 * 1024


async def call_here(order: LaunchOrder) -> Any:
    """Call the function of a launch and give what it returns.

    Raises:
        CodeNotFound: if this process cannot find it.
        BaseException: what it raises.
    """
    execute = _WAYS.get(order.executor)
    if execute is None:
        raise CodeNotFound(f"a step with the executor {order.executor!r} does not run in a loop or a thread")
    function = find_function(order.code)
    positional, named = order.call()
    return await execute(function, positional, named)


async def conclude_here(
    launch: LaunchSubject, order: LaunchOrder, value: Any, started_at_s: float, files: AttemptFiles
) -> Conclusion:
    """Make the end of an attempt whose body returned, without holding up the loop for long."""
    if _is_light(value):
        return conclude_value(launch, order, value, started_at_s, files)
    return await anyio.to_thread.run_sync(conclude_value, launch, order, value, started_at_s, files)


def _is_light(value: Any) -> bool:
    """Say whether a value takes next to no time to encode."""
    kind = type(value)
    if kind in LEAVES:
        return not isinstance(value, Sized) or len(value) <= _LIGHT_CHARS_MAX
    if kind is dict:
        value = list(value.values()) if len(value) <= _LIGHT_ITEMS_MAX else None
    elif kind is not list and kind is not tuple:
        return False
    return value is not None and len(value) <= _LIGHT_ITEMS_MAX and all(map(_is_small, value))


def _is_small(value: Any) -> bool:
    return type(value) in LEAVES and (not isinstance(value, Sized) or len(value) <= _LIGHT_ITEMS_MAX)
