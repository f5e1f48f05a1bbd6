"""Runs plain functions in threads of the worker's process."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
from anyio.lowlevel import EventLoopToken, current_token


async def run_in_thread(function: Callable[..., Any], positional: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """Call the function in a thread of its own.

    A thread cannot be killed: when the attempt is cancelled or times out, its thread is left to itself and
    its result is not looked at. It is a daemon, so that it does not keep the process alive either, which is
    why this is not the loop's own thread pool.
    """
    done = anyio.Event()
    outcome: list[tuple[bool, Any]] = []

    def body() -> None:
        try:
            found = (True, function(*positional, **named))
        except BaseException as error:  # noqa: BLE001 - SystemExit and friends are the step's failure, too
            found = (False, error)
        outcome.append(found)
        _notify(token, done)

    token = current_token()
    threading.Thread(target=contextvars.copy_context().run, args=(body,), name="evpipe-step", daemon=True).start()
    await done.wait()
    ok, value = outcome[0]
    if ok:
        return value
    raise value


def _notify(token: EventLoopToken, done: anyio.Event) -> None:
    try:
        anyio.from_thread.run_sync(done.set, token=token)
    except RuntimeError:
        # The loop has gone: nobody waits any more.
        return
