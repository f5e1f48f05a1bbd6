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

from evpipe.client.artifact_store import ArtifactStore
from evpipe.client.loops import outside_of_any_loop
from evpipe.sdk.result import Opener
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


class _LateObjects:
    """An object store that connects when the first object is asked for."""

    def __init__(self, connect: Callable[[], Client]) -> None:
        self._connect = connect
        self._client: Client | None = None
        self._lock = anyio.Lock()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def get_file(self, digest: str, file: Path) -> bool:
        async with self._lock:
            if self._client is None:
                self._client = await self._stack.enter_async_context(self._connect())
        return await self._client.bus.objects.get_file(digest, file)
