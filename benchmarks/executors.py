"""What it costs to keep user code out of the worker: a fan of no-op steps by each executor, on one server each.

Beside it in the same run the bus's floor, and Python's own ProcessPoolExecutor, which gives a call to a warm process
and takes its result, with no bus, no log and no kill of a step that hangs.

    python -m benchmarks.executors --pairs 3 --steps 3000
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from benchmarks.floor import measure_floor
from benchmarks.measuring import spread
from benchmarks.throughput import SLOTS, measure_evpipe, on_new_server

#: What, pipeline of `benchmarks.steps`, slots (None: as many as processes), code in the worker itself.
WAYS = (
    ("inline, in the worker (--code local:)", "fan", SLOTS, True),
    ("inline, in the host child", "fan", SLOTS, False),
    ("thread, in the worker (--code local:)", "fan_thread", SLOTS, True),
    ("thread, in the host child", "fan_thread", SLOTS, False),
    ("process", "fan_process", None, False),
)


def plus_one(i: int) -> int:
    """What the steps do."""
    return i + 1


def measure_pool(steps: int, processes: int) -> float:
    """Calls per second of Python's own pool, one message there and one back for each."""
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(plus_one, range(processes * 10)))
        began = time.perf_counter()
        found = [future.result() for future in [pool.submit(plus_one, i) for i in range(steps)]]
        seconds = time.perf_counter() - began
    assert found == list(range(1, steps + 1))
    return steps / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--processes", type=int, default=2 * (os.cpu_count() or 1))
    options = parser.parse_args()
    steps = options.steps
    ratios: dict[str, list[float]] = {}
    for pair in range(options.pairs):
        floor = on_new_server("default", lambda url: measure_floor(url, steps, 2_000))["steps_per_s"]
        pool = measure_pool(steps, options.processes)
        print(f"pair {pair + 1}: floor {floor:,.0f} steps/s, ProcessPoolExecutor {pool:,.0f} calls/s", flush=True)
        for what, shape, slots, local_code in WAYS:
            many = slots or options.processes
            way = partial(measure_evpipe, shape=shape, steps=steps, slots=many, local_code=local_code)
            found = on_new_server("default", way)
            per_s = found["steps_per_s"]
            ratios.setdefault(what, []).append(per_s / floor)
            line = f"  {what}: {per_s:,.0f} steps/s, worker {found['worker_cpu_us']:.0f} us of processor a step"
            if slots is None:
                ratios.setdefault("process beside ProcessPoolExecutor", []).append(per_s / pool)
                line += f", {per_s / pool:.2f} of ProcessPoolExecutor"
            print(line, flush=True)
    for what, values in ratios.items():
        of = "" if "beside" in what else " of the floor's steps/s"
        print(f"{what}: {spread(values)}{of}")


if __name__ == "__main__":
    main()
