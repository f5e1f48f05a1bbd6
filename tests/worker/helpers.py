"""A bus in this process with a controller and a worker, and a look at the processes that the worker has."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from evpipe import Client, Controller, RunResult, Worker
from evpipe.bus.memory import MemoryBus
from evpipe.client.handle import RunHandle
from evpipe.client.logs import LogEntry
from evpipe.sdk.definition import AnyPipeline
from evpipe.worker.children.killing import descendants
from evpipe.worker.children.pool import Pool

#: No test here takes longer than 10 s on two busy cores.
LIMIT_S = 60.0
#: Line, stream.
Line = tuple[str, str]


@asynccontextmanager
async def working(slots: int = 2, *, local_code: bool = True) -> AsyncIterator[tuple[Client, Worker]]:
    async with MemoryBus() as bus:
        client = Client(bus=bus)
        async with Controller(client), Worker(client, slots=slots, local_code=local_code) as worker:
            yield client, worker


def pool_of(worker: Worker) -> Pool:
    return worker._executors._pool


def in_loop(body: Callable[[], Awaitable[None]]) -> None:
    """Run the body of a test, for a bounded time."""

    async def bounded() -> None:
        with anyio.fail_after(LIMIT_S):
            await body()

    anyio.run(bounded)


async def ended(client: Client, target: AnyPipeline[..., Any], **parameters: Any) -> RunResult[Any]:
    """Submit a run and wait for its end."""
    return await (await client.submit(target, parameters)).result()


async def entries(handle: RunHandle[Any], step: str | None = None, attempt: int | None = None) -> list[LogEntry]:
    """What the run's steps have written until now."""
    return [entry async for entry in handle.logs(step, attempt=attempt, follow=False)]


async def lines(handle: RunHandle[Any], step: str | None = None, attempt: int | None = None) -> list[Line]:
    return [(entry.text, entry.stream) for entry in await entries(handle, step, attempt)]


async def texts(handle: RunHandle[Any], step: str | None = None, attempt: int | None = None) -> list[str]:
    return [text for text, _ in await lines(handle, step, attempt)]


def run_of(target: AnyPipeline[..., Any], *, slots: int = 2, local_code: bool = True, **parameters: Any) -> Ran:
    """Run a pipeline in a world of its own, to its end."""
    found: list[Ran] = []

    async def body() -> None:
        async with working(slots, local_code=local_code) as (client, _):
            handle = await client.submit(target, parameters)
            result = await handle.result()
            found.append(Ran(result, await entries(handle)))

    in_loop(body)
    return found[0]


class Ran:
    """The end of a run, and what its steps wrote."""

    def __init__(self, result: RunResult[Any], written: list[LogEntry]) -> None:
        self.result = result
        self.written = written

    @property
    def value(self) -> Any:
        return self.result.value

    def texts(self, step: str, attempt: int | None = None, *, stream: str | None = None) -> list[str]:
        return [
            entry.text
            for entry in self.written
            if entry.step == step and attempt in (None, entry.attempt) and stream in (None, entry.stream)
        ]


def is_alive(pid: int) -> bool:
    """Whether a process exists; one that has ended and was not waited for is none."""
    return _state(pid) not in {"", "Z", "X"}


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children_here() -> set[int]:
    """Children of workers of this process, and what they started."""
    # Not servers and other programs that tests have running beside them.
    roots = {pid for pid in descendants(os.getpid()) if b"evpipe.worker.children.main" in command(pid)}
    return {pid for root in roots for pid in {root, *descendants(root)} if is_alive(pid)}


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def pids_in(file: Path) -> set[int]:
    """What steps have noted with `steps.note_pid`."""
    return {int(word) for word in file.read_text().split()} if file.exists() else set()
