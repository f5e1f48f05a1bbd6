"""The pipelines that the benchmarks run."""

from __future__ import annotations

import anyio

from evpipe import pipeline, step


@step
async def no_op(i: int) -> int:
    return i + 1


@step
def no_op_process(i: int) -> int:
    return i + 1


@step(executor="thread")
def no_op_thread(i: int) -> int:
    return i + 1


@pipeline
def fan_process(steps: int) -> None:
    """Steps that do not need each other, each in a process."""
    for i in range(steps):
        no_op_process(i)


@pipeline
def fan_thread(steps: int) -> None:
    """Steps that do not need each other, each in a thread."""
    for i in range(steps):
        no_op_thread(i)


@pipeline
def fan(steps: int) -> None:
    """Steps that do not need each other."""
    for i in range(steps):
        no_op(i)


@pipeline
def chain(steps: int) -> int:
    """Each step needs the one before."""
    value = 0
    for _ in range(steps):
        value = no_op(value)
    return value


@step
async def pause(i: int, seconds: float) -> int:
    await anyio.sleep(seconds)
    return i + 1


@pipeline
def pauses(steps: int, seconds: float) -> None:
    """Steps that do not need each other and take a while."""
    for i in range(steps):
        pause(i, seconds)


@pipeline
def pauses_in_a_row(steps: int, seconds: float) -> int:
    """A chain of them."""
    value = 0
    for _ in range(steps):
        value = pause(value, seconds)
    return value
