"""The connection of a command that looks at a bus, and says which one, or at what runs without a bus have kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from evpipe.cli.output import say

if TYPE_CHECKING:
    from evpipe.bus.settings import BusSettings
    from evpipe.client.client import Client


@asynccontextmanager
async def connected(settings: BusSettings) -> AsyncIterator[Client]:
    """Connect, and say to what."""
    from evpipe.client.client import Client

    if settings.url is not None:
        say(f"bus: {settings.url} (configured)")
    async with Client(settings) as client:
        if client.embedded is not None:
            say(f"bus: {client.embedded.url} (embedded, data in {client.embedded.store_dir})")
        yield client


@asynccontextmanager
async def kept(*, sweeps: bool = False) -> AsyncIterator[Client]:
    """Give a client of what runs in the modes local and debug have kept for others.

    Args:
        sweeps: what nothing needs any more at the end is removed.
    """
    import anyio.to_thread

    from evpipe.bus.memory import MemoryBus, MemoryServer
    from evpipe.bus.results import kept_results
    from evpipe.client.client import Client

    results = kept_results(lambda text: say(f"note: {text}"))
    if results is not None:
        say(f"results: {results.folder}")
    async with MemoryBus(MemoryServer(results=results)) as bus:
        yield Client(bus=bus)
    if results is not None and sweeps:
        await anyio.to_thread.run_sync(results.sweep)
