"""Calling what starts an event loop of its own, wherever it is called: also in a notebook, under a running one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from evpipe.bus.clock import loop_runs_here

T = TypeVar("T")


def outside_of_any_loop(call: Callable[[], T]) -> T:
    """Call where no event loop runs: here if there is none, else in a thread of its own."""
    if not loop_runs_here():
        return call()
    outcome: list[tuple[bool, Any]] = []

    def body() -> None:
        try:
            outcome.append((True, call()))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            outcome.append((False, error))

    thread = threading.Thread(target=body, name="evpipe-run", daemon=True)
    thread.start()
    thread.join()
    ok, value = outcome[0]
    if ok:
        result: T = value
        return result
    raise value
