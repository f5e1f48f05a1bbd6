"""Moments to wake up at: a heap that is rebuilt from the fold at every takeover, exact to a millisecond."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import anyio


class Timers:
    """Calls back when a moment has come.

    Args:
        due: called with run, step (None for the run itself) and attempt.
    """

    def __init__(self, due: Callable[[str, str | None, int], None]) -> None:
        self._due = due
        # The counter keeps entries of one moment in order and keeps None from being compared.
        self._heap: list[tuple[float, int, str, str | None, int]] = []
        self._count = 0
        self._wake = anyio.Event()

    def add(self, delay_s: float, run: str, step: str | None, attempt: int) -> None:
        self._count += 1
        at = anyio.current_time() + max(0.0, delay_s)
        heapq.heappush(self._heap, (at, self._count, run, step, attempt))
        if self._heap[0][1] == self._count:
            self._wake.set()

    async def run(self) -> None:
        while True:
            while self._heap and self._heap[0][0] <= anyio.current_time():
                _, _, run, step, attempt = heapq.heappop(self._heap)
                self._due(run, step, attempt)
            self._wake = anyio.Event()
            with anyio.move_on_at(self._heap[0][0]) if self._heap else anyio.CancelScope():
                await self._wake.wait()
