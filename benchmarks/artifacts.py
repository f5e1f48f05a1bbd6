"""Artifacts: bytes moved, memory and time, beside a plain copy of the same bytes in the same run.

One file of 1 GB from a step to the next; 1,000 arrays of 1 MB, each taken by a step of its own; one array of 50 MB
taken by 200 steps. Server, controller and worker are processes of their own; steps run in children of the worker. The
plain copy copies a file of the same bytes and reads the copy, or saves and loads the arrays: what two steps that share
a disk would do.

    python -m benchmarks.artifacts                  all three
    python -m benchmarks.artifacts --case fan_out --sync default
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import artifact_steps
from benchmarks.artifact_steps import MIB, write_file
from benchmarks.replayed import peak_bytes
from evpipe import RunResult, connect
from evpipe.bus.server import ServerProcess
from evpipe.hosting.logs import configure_logs

#: Bytes that the loopback interface has sent, by the kernel's count.
LOOPBACK = Path("/sys/class/net/lo/statistics/tx_bytes")


def plain_file(size_mb: int, folder: Path) -> float:
    """Seconds that a plain copy takes, beside the writing that both do."""
    made = write_file(size_mb, 1)
    began = time.perf_counter()
    shutil.copyfile(made, folder / "copy")
    with (folder / "copy").open("rb") as stream:
        while stream.read(MIB):
            pass
    return time.perf_counter() - began


def plain_arrays(count: int, readers: int, size_mb: int, folder: Path) -> float:
    """Seconds that saving arrays and loading them takes; each is loaded by `readers`, as by steps of their own."""
    arrays = artifact_steps.make_arrays.fn(count, size_mb)
    began = time.perf_counter()
    for i, array in enumerate(arrays):
        np.save(folder / f"{i}.npy", array)
    for i in range(count):
        for _ in range(readers):
            artifact_steps.check_array.fn(np.load(folder / f"{i}.npy"))
    return time.perf_counter() - began


CASES: dict[str, tuple[Any, dict[str, int], Callable[[Path], float], int]] = {
    "one_file": (artifact_steps.one_file, {"size_mb": 1024}, lambda folder: plain_file(1024, folder), 1024),
    "many_arrays": (
        artifact_steps.many_arrays,
        {"count": 1_000, "size_mb": 1},
        lambda folder: plain_arrays(1_000, 1, 1, folder),
        1_000,
    ),
    "fan_out": (
        artifact_steps.fan_out,
        {"count": 200, "size_mb": 50},
        lambda folder: plain_arrays(1, 200, 50, folder),
        50,
    ),
}


def started(url: str, folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "EVPIPE_NATS_URL": url,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "EVPIPE_BENCHMARK_FOLDER": str(folder),
    }
    with (folder / f"{arguments[0]}.log").open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "evpipe", *arguments], stdout=stream, stderr=stream, env=environment
        )


async def submitted(url: str, pipeline: Any, parameters: dict[str, int]) -> tuple[RunResult[Any], float]:
    async with connect(url) as client:
        began = time.perf_counter()
        handle = await client.submit(pipeline, parameters)
        result = await handle.result(timeout_s=540)
        return result, time.perf_counter() - began


def measure(name: str, sync: Any, slots: int) -> None:
    pipeline, parameters, plain, stored_mb = CASES[name]
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        os.environ["EVPIPE_BENCHMARK_FOLDER"] = directory
        plain_s = plain(folder)
        with ServerProcess(folder / "nats", sync=sync) as server:
            processes = {
                "controller": started(server.url, folder, "controller"),
                "worker": started(server.url, folder, "worker", "--slots", str(slots)),
            }
            try:
                before = int(LOOPBACK.read_text())
                result, seconds = asyncio.run(submitted(server.url, pipeline, parameters))
                moved_mb = (int(LOOPBACK.read_text()) - before) / 1e6
                assert result.status == "succeeded", result.error
                peaks = {what: peak_bytes(process.pid) / 1e6 for what, process in processes.items()}
            finally:
                for process in processes.values():
                    process.send_signal(signal.SIGTERM)
                    process.wait(60)
    print(f"{name} (sync {sync}): {seconds:.1f} s, plain copy {plain_s:.1f} s: {seconds / plain_s:.1f} of it")
    stored = stored_mb * MIB / 1e6
    print(f"  over loopback {moved_mb:,.0f} MB, stored {stored:,.0f} MB: {moved_mb / stored:.2f} of it")
    print("  peak memory: " + ", ".join(f"{what} {size:,.0f} MB" for what, size in peaks.items()), end="")
    if name == "one_file":
        size, made, read = result.value
        assert re.fullmatch(r"\d+", str(size))
        print(f", process that made it {made:,.0f} MB, process that read it {read:,.0f} MB", end="")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=list(CASES), action="append")
    parser.add_argument("--sync", choices=["always", "default"], default="always")
    parser.add_argument("--slots", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    configure_logs()
    for name in options.case or CASES:
        measure(name, options.sync, options.slots)


if __name__ == "__main__":
    main()
