"""A real workflow on separate processes: its time beside its bounds, and the memory that the controller needs.

A server, `evpipe controller` and `evpipe worker`, each a process, and this one, which submits; for graphs of any size.
The file is one of `evpipe.examples.replay`.

    python -m benchmarks.replayed FILE --seconds 300 --slots 8
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from evpipe import RunResult, connect
from evpipe.bus.server import ServerProcess
from evpipe.examples.replay import bounds, load, report, submit
from evpipe.hosting.logs import configure_logs

END_S = 30.0


def started(url: str, arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start an `evpipe` command that logs to a file."""
    command = [sys.executable, "-c", "from evpipe.cli.main import main; main()", *arguments, "--url", url]
    with log.open("wb") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=stream, env={**os.environ, "EVPIPE_NATS_URL": url})


def peak_bytes(pid: int) -> int:
    """Peak of the resident memory of a process, as the kernel counts it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


async def run(url: str, file: str, scale: float) -> RunResult[int]:
    async with connect(url) as client:
        return await submit(client, file, scale, "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--seconds", type=float, default=300.0, help="the lower bound that the scale is chosen for")
    parser.add_argument("--slots", type=int, default=8)
    options = parser.parse_args()
    configure_logs()
    tasks = load(options.file)
    limits = bounds(tasks, options.slots)
    scale = options.seconds / limits.lower_s
    with tempfile.TemporaryDirectory() as directory, ServerProcess(Path(directory)) as server:
        logs = Path(directory)
        code = ["--code", "local:evpipe.examples.replay"]
        controller = started(server.url, ["controller"], logs / "controller.log")
        worker = started(server.url, ["worker", "--slots", str(options.slots), *code], logs / "worker.log")
        try:
            result = asyncio.run(run(server.url, options.file, scale))
            peaks = {"controller": peak_bytes(controller.pid), "worker": peak_bytes(worker.pid)}
        finally:
            for process in (controller, worker):
                process.terminate()
                process.wait(END_S)
    report(options.file, tasks, result, limits, scale, options.slots)
    for name, size in peaks.items():
        print(f"peak memory of the {name}: {size / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
