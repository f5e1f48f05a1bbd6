"""A small run beside a large one: how long it takes with all slots busy, and how full the slots stay.

A controller with the submitting client in one process, a worker with 8 slots in another. The large run is a fan of
steps that take 10 ms; small ones, chains of three such steps, are submitted beside it one after the other. Time is the
log's own. The same is measured for small runs of priority 0.

    python -m benchmarks.fairness --steps 10000
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from typing import Any

import anyio
import anyio.to_thread

from benchmarks import steps as pipelines
from benchmarks.measuring import run_loop
from benchmarks.throughput import on_new_server, quiet
from evpipe import Client, Controller, Worker, connect
from evpipe.bus.protocol import Record

SLOTS = 8
STEP_S = 0.01
#: Small runs that are measured with each priority.
SMALL = 10
#: What is asked for.
SMALL_MAX_S = 1.0


async def host_worker(url: str, ready: Any, stop: Any) -> None:
    async with connect(url) as client, Worker(client, slots=SLOTS, local_code=True):
        ready.set()
        await anyio.to_thread.run_sync(stop.wait)


def _worker_process(url: str, ready: Any, stop: Any) -> None:
    quiet()
    run_loop(lambda: host_worker(url, ready, stop))


async def _moments(client: Client, run: str) -> dict[str, Record]:
    """Give the first and the last event of a run, once it has ended."""
    found: dict[str, Record] = {}
    async with client.bus.follow([client.bus.subjects.events_of_step(run, "_")]) as feed:
        async for records in feed:
            for record in records:
                found[record.subject.rsplit(".", 1)[1]] = record
            if "finished" in found:
                return found
    raise AssertionError("a feed does not end")


async def measure(url: str, steps: int) -> dict[str, float]:
    async with connect(url) as client, Controller(client):
        warm = await client.submit(pipelines.pauses_in_a_row, {"steps": 2, "seconds": 0.0})
        await warm.result()
        alone = await client.submit(pipelines.pauses_in_a_row, {"steps": 3, "seconds": STEP_S})
        found = {"alone_s": _seconds(await _moments(client, alone.id))}
        large = await client.submit(pipelines.pauses, {"steps": steps, "seconds": STEP_S})
        beside: dict[int, list[float]] = {5: [], 0: []}
        for i in range(2 * SMALL):
            await anyio.sleep(0.2)
            priority = 5 if i % 2 else 0
            small = await client.submit(
                pipelines.pauses_in_a_row, {"steps": 3, "seconds": STEP_S}, priority=priority
            )  # fmt: skip
            beside[priority].append(_seconds(await _moments(client, small.id)))
        assert (await large.status()) == "running", (
            "the large run has ended before the small ones: give it more --steps"
        )
        for priority, seconds in beside.items():
            found |= {f"median_{priority}_s": statistics.median(seconds), f"most_{priority}_s": max(seconds)}
        found["large_s"] = _seconds(await _moments(client, large.id))
    found["busy"] = (steps + 6 * SMALL) * STEP_S / SLOTS / found["large_s"]
    return found


def _seconds(found: dict[str, Record]) -> float:
    return found["finished"].at_s - found["submitted"].at_s


def on_server(url: str, steps: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    worker = context.Process(target=_worker_process, args=(url, ready, stop))
    worker.start()
    assert ready.wait(30), "the worker did not start"
    try:
        return anyio.run(measure, url, steps)
    finally:
        stop.set()
        worker.join(20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    options = parser.parse_args()
    quiet()
    found = on_new_server("default", lambda url: on_server(url, options.steps))
    print(
        f"3 steps of {STEP_S * 1e3:.0f} ms alone: {found['alone_s']:.3f} s\n"
        f"beside {options.steps:,} of them on {SLOTS} slots: median {found['median_5_s']:.3f} s, "
        f"at most {found['most_5_s']:.3f} s (asked for: {SMALL_MAX_S:g} s)\n"
        f"the same with priority 0: median {found['median_0_s']:.3f} s, at most {found['most_0_s']:.3f} s\n"
        f"the large run: {found['large_s']:.1f} s, in which the slots were {found['busy']:.0%} busy"
    )
    assert found["most_5_s"] < SMALL_MAX_S


if __name__ == "__main__":
    main()
