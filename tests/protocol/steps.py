"""The steps that simulated runs are made of: they do what the stage of the moment has written down for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
from structlog.contextvars import get_contextvars

from evpipe import SkipStep, current, step


class Trouble(Exception):
    """What a step raises when its script says so."""


@dataclass(slots=True)
class Begin:
    """A body that began: written down by the body itself, past everything that is tested."""

    run: str
    step: str
    attempt: int
    worker: str
    at: float
    #: How many records the log had then.
    log_length: int
    #: When it was over, also because its worker died.
    ended_at: float = math.inf


@dataclass(slots=True)
class Stage:
    """What the bodies of one simulation do, and what they did."""

    #: Seconds that an attempt of a step takes.
    delay_s: Callable[[str, int], float]
    #: How many executions of a step raise, the first ones.
    failures: dict[str, int]
    log_length: Callable[[], int]
    #: Steps that skip themselves, when they do not fail any more.
    skips: frozenset[str] = frozenset()
    begins: list[Begin] = field(default_factory=list)
    executed: dict[tuple[str, str], int] = field(default_factory=dict)


stage: list[Stage] = []


@step
async def work(name: str, inputs: list[int]) -> int:
    now = stage[-1]
    bound: dict[str, Any] = get_contextvars()
    run, attempt = str(bound["run_id"]), int(bound["attempt"])
    begin = Begin(run, name, attempt, str(bound["worker_id"]), anyio.current_time(), now.log_length())
    now.begins.append(begin)
    context = current()
    context.metric("began", attempt)
    context.artifact("who", f"{context.run} {context.step} {context.attempt}")
    try:
        await anyio.sleep(now.delay_s(name, attempt))
    finally:
        begin.ended_at = anyio.current_time()
    context.metric("woke", attempt)
    if now.failures.get(name, 0) >= attempt:
        raise Trouble(f"{name} fails its attempts up to {now.failures[name]}")
    if name in now.skips:
        raise SkipStep(f"{name} skips itself")
    return value_of(name, inputs)


@step
async def listed(name: str, count: int) -> list[int]:
    """As `work`, with the list of the first numbers as its value."""
    await work.fn(name, [])
    return list(range(count))


@step
async def one(name: str, number: int, before: int = 0) -> int:
    """As `work`, as an element of a map: named after its number."""
    return await work.fn(f"{name}.{number}", [before])


def value_of(name: str, inputs: list[int]) -> int:
    """The value of a step: depends on all of its inputs and on their order."""
    found = sum(map(ord, name))
    for i, number in enumerate(inputs):
        found = (found * 31 + (i + 1) * number) % 1_000_003
    return found
