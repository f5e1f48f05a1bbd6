"""Graphs whose events make thousands of things to do at once."""

from __future__ import annotations

import anyio

from evpipe import pipeline, step

WIDTH = 3_000


@step
async def root() -> int:
    return 1


@step
async def more(number: int, by: int) -> int:
    return number + by


@step
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@step
async def endless(number: int) -> None:
    await anyio.sleep_forever()


@pipeline
def wide(width: int) -> int:
    """One end makes all others ready, and all those one."""
    first = root()
    return total([more(first, by=i) for i in range(width)])


@pipeline(deadline_s=0.01)
def late(width: int) -> None:
    """The deadline has passed before all launches have left."""
    first = root()
    for _ in range(width):
        endless(first)


def test_one_end_makes_thousands_ready() -> None:
    """Records that come while launches leave in turns wait, and are not lost."""
    result = wide.options(mode="local").run(width=WIDTH)
    assert (result.status, result.value) == ("succeeded", WIDTH + sum(range(WIDTH)))
    assert {step.attempts for step in result.steps.values()} == {1}


def test_a_deadline_that_passes_while_launches_leave_counts() -> None:
    """What is due while the controller is busy with the run is due when it is not."""
    result = late.options(mode="local").run(width=WIDTH)
    assert (result.status, result.reason) == ("failed", "deadline")
    assert {str(step.status) for name, step in result.steps.items() if name != "root"} == {"cancelled"}
    assert {str(step.reason) for name, step in result.steps.items() if name != "root"} == {"deadline"}
