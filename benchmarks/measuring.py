"""What the benchmarks share: the loop, processor time, ratios."""

from __future__ import annotations

import asyncio
import os
import statistics
from collections.abc import Callable, Coroutine
from typing import Any

from evpipe.hosting.serve import collect_less_often


def run_loop(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine as a process of its own does: the same for both sides of a ratio.

    On uvloop if it is installed, else on asyncio's own loop.
    """
    collect_less_often()
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())


def cpu_s() -> float:
    """Processor seconds that this process has used."""
    times = os.times()
    return times.user + times.system


def spread(values: list[float]) -> str:
    """Median and range of some ratios."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
