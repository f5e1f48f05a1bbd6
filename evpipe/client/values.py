"""Values of runs for who asks: with what is stored beside them in its place.

A run's log has artifacts where its steps gave large values, or such of libraries. They are fetched when a value is
asked for, by whoever asks, and not before: `RunResult.value` looks into this user's cache first and connects only for
what is not there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio
from anyio.abc import TaskGroup, TaskStatus

from evpipe.client.artifact_store import ArtifactStore
from evpipe.client.loops import outside_of_any_loop
from evpipe.client.notes import recorded_notes
from evpipe.core.notes import Notes
from evpipe.sdk.result import Look, Opener, Recall, RunResult
from evpipe.wire.storing import artifacts_of

if TYPE_CHECKING:
    from evpipe.client.client import Client


def opener_of(connect: Callable[[], Client], *, allow_pickle: bool = False) -> Opener:
    """Give what opens values from any thread, connecting when there is need to.

    Args:
        connect: makes a client of the installation.
        allow_pickle: whether pickles may be read, which runs what is in them.
    """

    def opened(value: Any) -> Any:
        if not artifacts_of(value):
            return value

        async def load() -> Any:
            async with _LateObjects(connect) as objects:
                return await ArtifactStore(objects).load(value, pickles=allow_pickle)

        return outside_of_any_loop(lambda: anyio.run(load))

    return opened


def look_of(connect: Callable[[], Client], *, allow_pickle: bool = False) -> Look:
    """Give what finds the results of the runs that steps are from any thread, connecting each time.

    Args:
        connect: makes a client of the installation.
        allow_pickle: whether pickles among their values may be read, which runs what is in them.
    """

    def look(run_id: str, pipeline: str) -> RunResult[Any] | None:
        # Here, for a handle has values.
        from evpipe.client.handle import RunHandle

        async def read() -> RunResult[Any] | None:
            async with connect() as client:
                handle: RunHandle[Any] = RunHandle(client.bus, run_id, pipeline, connect)
                run = await handle.state()
                if run.submitted_at_s is None:
                    return None
                return handle.result_of(run, allow_pickle=allow_pickle)

        return outside_of_any_loop(lambda: anyio.run(read))

    return look


def recall_of(connect: Callable[[], Client], pipeline: str) -> Recall:
    """Give what finds what attempts of a run recorded whose end does not say it, connecting each time.

    Args:
        connect: makes a client of the installation.
        pipeline: of the run.
    """

    def recall(run_id: str, step: str, attempt: int) -> Notes | None:
        async def read() -> Notes | None:
            async with connect() as client:
                return await recorded_notes(client.bus, run_id, pipeline, step, attempt)

        return outside_of_any_loop(lambda: anyio.run(read))

    return recall


class _LateObjects:
    """An object store that connects when the first object is asked for."""

    def __init__(self, connect: Callable[[], Client]) -> None:
        self._connect = connect
        self._client: Client | None = None
        self._lock = anyio.Lock()
        self._done = anyio.Event()
        self._stack = AsyncExitStack()
        self._task_group: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._task_group = await self._stack.enter_async_context(anyio.create_task_group())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        await self._stack.__aexit__(kind, error, traceback)

    async def get_file(self, digest: str, file: Path) -> bool:
        async with self._lock:
            if self._client is None:
                assert self._task_group is not None, "entered"
                # Whoever asks first is one of several transfers: the client lives in a task of its own.
                self._client = await self._task_group.start(self._hold)
        return await self._client.bus.objects.get_file(digest, file)

    async def _hold(self, *, task_status: TaskStatus[Client]) -> None:
        async with self._connect() as client:
            task_status.started(client)
            await self._done.wait()
