"""evpipe against the floor: the same server, the same messages, in turn.

A controller with the submitting client in one process, a worker in another, as the floor has them. Time is the
log's own: from the run's `submitted` to its `finished`. The result is a ratio, never a figure alone.

    python -m benchmarks.throughput --pairs 5 --sync always
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import structlog

from benchmarks import steps as pipelines
from benchmarks.floor import measure_floor
from benchmarks.measuring import cpu_s, run_loop, spread
from evpipe import Client, Controller, Worker, connect
from evpipe.bus.server import ServerProcess

SLOTS = 1_000


async def host_worker(url: str, ready: Any, stop: Any, out: Any, steps: int, slots: int, local_code: bool) -> None:
    async with connect(url) as client, Worker(client, ["default"], slots=slots, local_code=local_code):
        ready.set()
        start_s = cpu_s()
        await anyio.to_thread.run_sync(stop.wait)
        out.put({"worker_cpu_us": (cpu_s() - start_s) / steps * 1e6})


async def submit_and_wait(client: Client, shape: str, steps: int) -> float:
    target = getattr(pipelines, shape)
    last = await client.bus.last_sequence()
    handle = await client.submit(target, {"steps": steps})
    at: dict[str, Any] = {}
    wanted = [client.bus.subjects.events_of_step(handle.id, "_")]
    async with client.bus.follow(wanted, after=last) as feed:
        async for records in feed:
            for record in records:
                at[record.subject.rsplit(".", 1)[1]] = record
            if "finished" in at:
                break
    assert b"succeeded" in at["finished"].payload, at["finished"].payload
    return float(at["finished"].at_s - at["submitted"].at_s)


async def host_controller(url: str, shape: str, steps: int, out: Any) -> None:
    async with connect(url) as client, Controller(client):
        # The lease of the pair before is gone at the latest when it runs out.
        await submit_and_wait(client, "chain", 2)
        start_s = cpu_s()
        seconds = await submit_and_wait(client, shape, steps)
        out.put({"seconds": seconds, "controller_cpu_us": (cpu_s() - start_s) / steps * 1e6})


def quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))


def _worker_process(url: str, ready: Any, stop: Any, out: Any, steps: int, slots: int, local_code: bool) -> None:
    quiet()
    run_loop(lambda: host_worker(url, ready, stop, out, steps, slots, local_code))


def _controller_process(url: str, shape: str, steps: int, out: Any) -> None:
    quiet()
    run_loop(lambda: host_controller(url, shape, steps, out))


def measure_evpipe(
    url: str, shape: str, steps: int, *, slots: int = SLOTS, local_code: bool = True
) -> dict[str, float]:
    """Run one pipeline in separate processes; gives what `measure_floor` gives.

    Args:
        shape: name of the pipeline in `benchmarks.steps`.
        local_code: as of `Worker`.
    """
    context = multiprocessing.get_context("spawn")
    out, ready, stop = context.Queue(), context.Event(), context.Event()
    worker = context.Process(target=_worker_process, args=(url, ready, stop, out, steps, slots, local_code))
    controller = context.Process(target=_controller_process, args=(url, shape, steps, out))
    worker.start()
    assert ready.wait(30), "the worker did not start"
    controller.start()
    found: dict[str, float] = out.get(timeout=300)
    controller.join(20)
    stop.set()
    found |= out.get(timeout=20)
    worker.join(20)
    found["steps_per_s"] = steps / found["seconds"]
    found["us_per_step"] = found["seconds"] / steps * 1e6
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--hops", type=int, default=500)
    parser.add_argument("--sync", choices=("default", "always"), default="default")
    options = parser.parse_args()
    shapes = (("fan", options.steps, 2_000), ("chain", options.hops, 1))
    for shape, steps, in_flight in shapes:
        ratios: list[float] = []
        for pair in range(options.pairs):
            # A server of its own for each side: neither pays for what the other stored.
            floor = on_new_server(options.sync, lambda url: measure_floor(url, steps, in_flight))  # noqa: B023
            evpipe = on_new_server(options.sync, lambda url: measure_evpipe(url, shape, steps))  # noqa: B023
            ratio = evpipe["steps_per_s"] / floor["steps_per_s"]
            ratios.append(ratio if shape == "fan" else 1 / ratio)
            print(
                f"{shape} pair {pair + 1}: floor {floor['steps_per_s']:,.0f} steps/s ({floor['us_per_step']:.0f} us), "
                f"evpipe {evpipe['steps_per_s']:,.0f} steps/s ({evpipe['us_per_step']:.0f} us; controller "
                f"{evpipe['controller_cpu_us']:.0f}, worker {evpipe['worker_cpu_us']:.0f} us of processor)",
                flush=True,
            )
        what = "of the floor's steps/s" if shape == "fan" else "times the floor's hop"
        print(f"{shape}, sync {options.sync}: {spread(ratios)} {what}", flush=True)


def on_new_server(sync: Any, measure: Any) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory, ServerProcess(Path(directory), sync=sync) as server:
        found: dict[str, float] = measure(server.url)
        return found


if __name__ == "__main__":
    main()
