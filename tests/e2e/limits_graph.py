"""Steps that share limits, and a witness of them that no bug of ours can fool: locks of the kernel.

A body takes a file lock for each of its limits without waiting. The kernel frees a lock when its process is gone,
however it went; so a lock that is taken is a body that runs.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio

from evpipe import Mutex, Pipeline, Rate, Semaphore, step

LICENCES = 3
#: What a step may have; a rate is never in the way here, but it is taken and written down like the rest.
SETS = (
    (Mutex("db"),),
    (Mutex("db"),),
    (Semaphore("licence", LICENCES),),
    (Semaphore("licence", LICENCES),),
    (Mutex("db"), Semaphore("licence", LICENCES)),
    (Semaphore("licence", LICENCES), Rate("api", 1_000, 1.0)),
)


def _write(folder: str, line: str) -> None:
    # One write of an appended line is one piece, also between processes.
    with (Path(folder) / "witness").open("a") as file:
        file.write(f"{line}\n")


@contextmanager
def _locks(folder: str, name: str, counts: dict[str, int]) -> Iterator[None]:
    with ExitStack() as stack:
        taken = []
        for limit, count in counts.items():
            for i in range(count):
                file = (Path(folder) / f"{limit}.{i}").open("a")
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.close()
                    continue
                stack.enter_context(file)
                taken.append(f"{limit}.{i}")
                break
            else:
                _write(folder, f"exceeded {limit} {name} {os.getpid()}")
        _write(folder, f"begin {name} {os.getpid()} {' '.join(taken)}")
        yield
        _write(folder, f"end {name} {os.getpid()}")


@step(retries=1)
def in_process(folder: str, name: str, counts: dict[str, int], seconds: float) -> str:
    with _locks(folder, name, counts):
        time.sleep(seconds)
    return name


@step
async def in_loop(folder: str, name: str, counts: dict[str, int], seconds: float) -> str:
    with _locks(folder, name, counts):
        await anyio.sleep(seconds)
    return name


def guarded(folder: Path, key: str, steps: int, seconds: float) -> Pipeline:
    """A run whose steps all want something that others have; they do not need each other."""
    made = Pipeline("guarded")
    for i in range(steps):
        limits = SETS[i % len(SETS)]
        counts = {
            limit.name: limit.count if isinstance(limit, Semaphore) else 1
            for limit in limits
            if not isinstance(limit, Rate)
        }
        body = in_loop if i % 2 else in_process
        name = f"s{i}"
        arguments = {"folder": str(folder), "name": f"{key}-{name}", "counts": counts, "seconds": seconds}
        made.step(name, body.options(limits=limits), args=arguments)
    return made
