"""Event loops whose time is virtual: a wait costs nothing, and its order among other waits stays."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import anyio
from trio.testing import MockClock

Kind = Literal["asyncio", "trio", "real"]


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for no time at all: what would have been waited is added to the loop's clock."""

    def __init__(self) -> None:
        super().__init__()
        self.jumped_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        found: list[Any] = super().select(0)
        if not found and timeout is not None and timeout > 0:
            self.jumped_s += timeout
        elif not found and timeout is None:
            # Nothing is scheduled: only a thread or a signal can go on from here.
            found = super().select(1.0)
        return found


class JumpingLoop(asyncio.SelectorEventLoop):
    """An asyncio loop with a virtual clock that stands still while anything can run."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.jumped_s


def run_in(kind: Kind, main: Callable[[], Awaitable[None]]) -> None:
    """Run `main` in a loop of its own: with virtual time on asyncio or trio, or with the real one on asyncio."""
    match kind:
        case "asyncio":
            anyio.run(main, backend="asyncio", backend_options={"loop_factory": JumpingLoop})
        case "trio":
            anyio.run(main, backend="trio", backend_options={"clock": MockClock(autojump_threshold=0)})
        case "real":
            anyio.run(main, backend="asyncio")
