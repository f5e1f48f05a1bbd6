"""A pipeline that runs while nonsense arrives."""

from __future__ import annotations

import anyio

from evpipe import pipeline, step


@step
async def slow(value: int) -> int:
    await anyio.sleep(1.5)
    return value + 1


@pipeline
def chain() -> int:
    return slow(slow(slow(0)))
