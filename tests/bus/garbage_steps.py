"""A pipeline that runs while nonsense arrives, and what holds its bodies meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from evpipe import pipeline, step


class Held:
    """Bodies of `slow` that wait until the test lets them go on."""

    def __init__(self) -> None:
        #: How many have begun.
        self.begun = 0
        self._may_end = anyio.Semaphore(0)

    async def wait(self) -> None:
        self.begun += 1
        await self._may_end.acquire()

    def let_one_end(self) -> None:
        self._may_end.release()


_held: Held | None = None


@contextmanager
def holding() -> Iterator[Held]:
    """Hold the bodies of `slow`; without it they end at once."""
    global _held
    _held = Held()
    try:
        yield _held
    finally:
        _held = None


@step
async def slow(value: int) -> int:
    if _held is not None:
        await _held.wait()
    return value + 1


@pipeline
def chain() -> int:
    return slow(slow(slow(0)))
