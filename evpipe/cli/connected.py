"""The connection of a command that looks at a bus, and says which one."""

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
