"""Runs the shape of a real workflow: its steps sleep their run times, scaled, and pass a small value on.

    python -m evpipe.examples.replay FILE --seconds 20 --slots 8

FILE is JSON, `.gz` or not: `{"name": …, "tasks": [{"id": …, "parents": [ids], "runtime_s": …}, …]}`. The scale is
chosen so that no schedule on that many slots could take less than `--seconds`; the time that the run took is
printed beside that bound and beside Graham's (1969), which no schedule that leaves no slot idle exceeds.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import secrets
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evpipe import Client, Controller, RunResult, UsageError, Worker, connect, pipeline, step
from evpipe.hosting.logs import configure_logs

#: From this many steps on they are coroutines: a process for each would measure how fast processes are handed work.
INLINE_FROM = 1_000


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a workflow; its parents are positions in the file."""

    title: str
    parents: tuple[int, ...]
    runtime_s: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a schedule on some slots can take, in the file's seconds."""

    critical_path_s: float
    lower_s: float
    upper_s: float


@step
def nap(seconds: float, depths: list[int]) -> int:
    """Sleep; give how deep in the workflow this is."""
    time.sleep(seconds)
    return 1 + max(depths, default=0)


@step
async def nap_inline(seconds: float, depths: list[int]) -> int:
    """Sleep in the worker's loop; give how deep in the workflow this is."""
    await asyncio.sleep(seconds)
    return 1 + max(depths, default=0)


@step
async def deepest(depths: list[int]) -> int:
    """Give the length of the longest path."""
    return max(depths, default=0)


@pipeline
def replay(file: str, scale: float = 0.001) -> int:
    """Run the workflow in a file; gives the number of tasks on its longest path."""
    tasks = load(file)
    order, stuck = topological(tasks)
    call = nap_inline if len(tasks) >= INLINE_FROM else nap
    made: dict[int, int] = {}
    # Tasks in a cycle come last; that they wait for each other is for the graph to find.
    for i in (*order, *stuck):
        after = [f"t{parent}" for parent in tasks[i].parents]
        depths = [made[parent] for parent in tasks[i].parents if parent in made]
        options = call.options(name=f"t{i}", after=after, description=tasks[i].title)
        made[i] = options(tasks[i].runtime_s * scale, depths)
    inner = {parent for task in tasks for parent in task.parents}
    return deepest([made[i] for i in order if i not in inner])


def load(file: str) -> list[Task]:
    """Read a workflow file.

    Raises:
        UsageError: if it is not one.
    """
    try:
        path = Path(file)
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found: list[dict[str, Any]] = json.loads(data)["tasks"]
        position = {task["id"]: i for i, task in enumerate(found)}
        return [
            Task(task["id"], tuple(position[parent] for parent in task["parents"]), float(task["runtime_s"]))
            for task in found
        ]
    except OSError as error:
        raise UsageError(f"the workflow file {file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is not a workflow: {type(error).__name__}: {error}") from error


def topological(tasks: Sequence[Task]) -> tuple[list[int], list[int]]:
    """Give the tasks with parents first, and those that are in a cycle or below one."""
    below: list[list[int]] = [[] for _ in tasks]
    waiting_on = [len(set(task.parents)) for task in tasks]
    for i, task in enumerate(tasks):
        for parent in set(task.parents):
            below[parent].append(i)
    ready = deque(i for i, count in enumerate(waiting_on) if not count)
    order: list[int] = []
    while ready:
        i = ready.popleft()
        order.append(i)
        for child in below[i]:
            waiting_on[child] -= 1
            if not waiting_on[child]:
                ready.append(child)
    return order, [i for i, count in enumerate(waiting_on) if count]


def bounds(tasks: Sequence[Task], slots: int) -> Bounds:
    """Give the bounds of a schedule on so many slots.

    Source: Graham, "Bounds on multiprocessing timing anomalies", 1969.
    """
    ends: dict[int, float] = {}
    for i in topological(tasks)[0]:
        ends[i] = tasks[i].runtime_s + max((ends[parent] for parent in tasks[i].parents), default=0.0)
    work_s = sum(task.runtime_s for task in tasks) / slots
    critical_s = max(ends.values(), default=0.0)
    return Bounds(critical_s, max(critical_s, work_s), work_s + (1 - 1 / slots) * critical_s)


def check_order(tasks: Sequence[Task], result: RunResult[Any]) -> None:
    """Raise if a step began before a parent had ended."""
    for i, task in enumerate(tasks):
        began_at = result.steps[f"t{i}"].started_at
        for parent in task.parents:
            ended_at = result.steps[f"t{parent}"].ended_at
            if began_at is None or ended_at is None or began_at < ended_at:
                raise AssertionError(f"t{i} began at {began_at}, its parent t{parent} ended at {ended_at}")


async def run_on_bus(file: str, scale: float, slots: int) -> RunResult[int]:
    """Run it on the configured bus, or the embedded one, with a controller and a worker of this process."""
    queue = f"replay-{secrets.token_hex(4)}"
    async with connect() as client, Controller(client), Worker(client, [queue], slots=slots):
        return await submit(client, file, scale, queue)


async def submit(client: Client, file: str, scale: float, queue: str) -> RunResult[int]:
    """Submit it to a queue and wait."""
    handle = await client.submit(replay, {"file": file, "scale": scale}, queue=queue)
    return await handle.result()


def report(file: str, tasks: Sequence[Task], result: RunResult[int], limits: Bounds, scale: float, slots: int) -> None:
    """Check a run and print its time beside its bounds."""
    print(f"{file}: {len(tasks):,} steps, {result.value:,} deep: {result.status}")
    check_order(tasks, result)
    steps = [result.steps[f"t{i}"] for i in range(len(tasks))]
    began_at = min(step.queued_at for step in steps if step.queued_at)
    took_s = (max(step.ended_at for step in steps if step.ended_at) - began_at).total_seconds()
    lower_s, upper_s = limits.lower_s * scale, limits.upper_s * scale
    print(f"took {took_s:.2f} s; on {slots} slots at least {lower_s:.2f} s, at most {upper_s:.2f} s (Graham)")
    print(
        f"{took_s / lower_s:.3f} of the lower bound, {took_s / upper_s:.3f} of Graham's" if lower_s else "no run time"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay a file from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=str)
    parser.add_argument("--seconds", type=float, default=20.0, help="the lower bound that the scale is chosen for")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--debug", action="store_true", help="call the steps one after the other in this process")
    options = parser.parse_args(arguments)
    configure_logs()
    try:
        tasks = load(options.file)
        limits = bounds(tasks, options.slots)
        scale = options.seconds / limits.lower_s if limits.lower_s else 0.0
        if options.debug:
            result = replay.options(mode="debug").run(file=options.file, scale=scale)
        else:
            result = asyncio.run(run_on_bus(options.file, scale, options.slots))
    except UsageError as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    report(options.file, tasks, result, limits, scale, options.slots)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
