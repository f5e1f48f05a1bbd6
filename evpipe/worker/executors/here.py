"""Runs inline and thread steps in this process, which has their code."""

from __future__ import annotations

from typing import Any

from evpipe.wire.messages import LaunchOrder
from evpipe.worker.code import CodeNotFound, find_function
from evpipe.worker.executors.inline import run_inline
from evpipe.worker.executors.thread import run_in_thread

_WAYS = {"inline": run_inline, "thread": run_in_thread}


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
    named = dict(order.arguments)
    positional = named.pop("*", ())
    return await execute(function, positional, named)
