"""An event costs what it touches and not what the graph has: counted in bytecodes and calls, not in time."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from evpipe.core.events import Event
from evpipe.core.machine import Run
from evpipe.core.retry import RetryPolicy
from tests.core.making import (
    cancel,
    cancelled,
    failed,
    folded,
    graph,
    lost,
    skipped,
    started,
    step,
    submitted,
    succeeded,
)

SMALL, LARGE = 100, 10_000


def fan(width: int) -> Run:
    """A root, `width` steps below it, and a step that waits for all of them; the root has succeeded."""
    policy = RetryPolicy(count=1)
    leaves = [step(f"s{i}", "root", retries=policy) for i in range(width)]
    join = step("join", after=tuple(leaf.name for leaf in leaves))
    below = step("below", "s0")
    return folded(submitted(graph(step("root"), *leaves, join, below)), succeeded("root"))


def bytecodes(call: Callable[[], Any]) -> int:
    """How many bytecodes a call executes: the same number every time, on any machine."""
    count = 0

    def trace(frame: FrameType, what: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += what == "opcode"
        return trace

    before = sys.gettrace()
    # Python 3.12 has to know before it begins that opcodes will be asked for: else it tells the first call none.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def calls(call: Callable[[], Any]) -> int:
    """How many functions a call calls, those in C included."""
    count = 0

    def profile(_: FrameType, what: str, __: Any) -> None:
        nonlocal count
        count += what in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    return count


def allocated(call: Callable[[], Any]) -> int:
    """The bytes at the peak of a call: a copy made in C shows here and nowhere else."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


EVENTS: dict[str, tuple[tuple[Event, ...], Event]] = {
    "started": ((), started("s5")),
    "succeeded": ((), succeeded("s5")),
    "succeeded again": ((succeeded("s5"),), succeeded("s5")),
    "failed and is retried": ((), failed("s5")),
    "lost": ((), lost("s5")),
    "skipped": ((failed("s0"), failed("s0", 2)), skipped("below")),
    "cancelled": ((cancel(),), cancelled("s5", 1)),
    "cancel requested again": ((cancel(),), cancel()),
    "of an unknown step": ((), started("nobody")),
}


@pytest.mark.parametrize(("before", "event"), EVENTS.values(), ids=EVENTS.keys())
@pytest.mark.parametrize("measure", [bytecodes, calls])
def test_an_event_costs_the_same_in_a_graph_a_hundred_times_as_wide(
    measure: Callable[[Callable[[], Any]], int], before: tuple[Event, ...], event: Event
) -> None:
    costs = []
    for run in (fan(SMALL), fan(LARGE)):
        for earlier in before:
            run.step(earlier)
        costs.append(measure(lambda run=run: run.step(event)))  # type: ignore[misc]
    assert costs[0] == costs[1]
    assert 0 < costs[0] < 2_000


def test_an_event_copies_nothing_of_the_graph() -> None:
    run = fan(LARGE)
    run.step(succeeded("s1"))
    assert allocated(lambda: run.step(succeeded("s5"))) < 2_000


def test_the_measure_sees_work_that_grows() -> None:
    """The end of a run's time touches every step, so the counters above must show it."""
    assert bytecodes(lambda: fan(SMALL).step(cancel())) < bytecodes(lambda: fan(SMALL * 2).step(cancel()))
