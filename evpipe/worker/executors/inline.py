"""Runs coroutine steps in the worker's own loop: the cheapest way, for steps that wait more than they compute."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evpipe.errors import UsageError


async def run_inline(function: Callable[..., Any], positional: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """Await the function's coroutine; cancelled at its next await."""
    found = function(*positional, **named)
    if not inspect.isawaitable(found):
        raise UsageError("the executor 'inline' is for async functions; use executor='thread' for a def")
    return await found
