"""Steps of a loop or of its threads."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from evpipe import pipeline, step
from tests.worker.steps import FOREVER_S, note_pid, wait_for


async def until_there(file: str) -> None:
    end = time.monotonic() + 30
    while not Path(file).exists():  # noqa: ASYNC240 - anyio's would be of another thread
        assert time.monotonic() < end, f"nobody made {file}"
        await asyncio.sleep(0.005)


@step
async def meet(folder: str, name: str, other: str) -> int:
    """Wait for another step, which waits for this one; say so."""
    print(f"{name} is here")
    (Path(folder) / name).touch()
    await until_there(str(Path(folder) / other))
    print(f"{name} met {other}", end="")
    return os.getpid()


@step(executor="thread")
def thread_meet(folder: str, name: str, other: str) -> int:
    print(f"{name} is here")
    (Path(folder) / name).touch()
    wait_for(str(Path(folder) / other))
    print(f"{name} met {other}", end="")
    return os.getpid()


@step
async def stay(file: str) -> None:
    """Stay until cancelled, and say when that is."""
    print("stays")
    note_pid(file)
    try:
        await asyncio.sleep(FOREVER_S)
    finally:
        Path(file + ".cancelled").touch()  # noqa: ASYNC240 - nothing is to be awaited any more


@step
async def block(file: str) -> None:
    """Keep the loop from everybody else, whatever it is told."""
    note_pid(file)
    time.sleep(FOREVER_S)  # noqa: ASYNC251 - that is what it does wrong


@step
async def host_pid(after: Any = None) -> int:
    return os.getpid()


@step
async def held(file: str, gate: str, number: int) -> list[int]:
    note_pid(file)
    await until_there(gate)
    return [number, os.getpid()]


@pipeline
def meeting(folder: str) -> list[int]:
    return [
        meet.options(name="a")(folder, "a", "b"),
        meet.options(name="b")(folder, "b", "c"),
        thread_meet.options(name="c")(folder, "c", "a"),
    ]


@pipeline
def late(file: str) -> list[Any]:
    # In a host that is there, so that its time is enough for what it has to say.
    ended = stay.options(timeout_s=0.5, on_failure="continue", after=[host_pid()])(file)
    return [ended, host_pid(ended)]


@pipeline
def blocked(file: str) -> None:
    return block(file)


@pipeline
def stays(file: str) -> None:
    return stay(file)


@pipeline
def holds(file: str, gate: str, count: int) -> list[list[int]]:
    return [held(file, gate, i) for i in range(count)]


@pipeline
def pids(count: int) -> list[int]:
    return [host_pid(i) for i in range(count)]
