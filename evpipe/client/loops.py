"""Calling what starts an event loop of its own, wherever it is called: also in a notebook, under a running one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from evpipe.bus.clock import loop_runs_here

T = TypeVar("T")


def outside_of_any_loop(call: Callable[[], T], interrupt: Callable[[], bool] = lambda: False) -> T:
    """Call where no event loop runs: here if there is none, else in a thread of its own.

    Args:
        interrupt: called on Ctrl-C (which reaches the main thread only) while the call runs in another. Says whether
            the call will end by it; it is waited for then, until the next Ctrl-C.

    """
    if not loop_runs_here():
        return call()
    outcome: list[tuple[bool, Any]] = []
    # Not Thread.join: interrupted once, Python 3.11 takes the thread for ended.
    done = threading.Event()

    def body() -> None:
        try:
            outcome.append((True, call()))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            outcome.append((False, error))
        finally:
            done.set()

    threading.Thread(target=body, name="evpipe-run", daemon=True).start()
    try:
        done.wait()
    except KeyboardInterrupt:
        if not interrupt():
            raise
        done.wait()
    ok, value = outcome[0]
    if ok:
        result: T = value
        return result
    raise value
