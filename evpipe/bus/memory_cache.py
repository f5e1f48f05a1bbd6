"""The cache's bucket of a memory bus where results of other runs are kept on a disk.

What is put into it is written there, too, with the objects that it needs, but for markers; what it does not have is
looked for there, and the objects of what is found become objects of the server.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread

from evpipe.bus.results import Kept, ResultStore, Use
from evpipe.errors import RemoteProtocolError
from evpipe.wire.cache import CacheEntry, decode_entry, is_entry_key

if TYPE_CHECKING:
    from evpipe.bus.memory import MemoryServer


class KeptBehind:
    """The results behind a bucket of a server."""

    def __init__(self, server: MemoryServer, results: ResultStore) -> None:
        self._server = server
        self._results = results
        self._use = Use(results)

    async def get(self, key: str) -> Kept | None:
        found = await anyio.to_thread.run_sync(self._results.get, key, self._use)
        for digest in found.objects if found is not None else ():
            file = self._use.file(digest)
            if file is not None:
                self._server.object_files[digest] = file
        return found

    async def put(self, key: str, value: bytes) -> None:
        # The components of an entry are kept with it.
        if _is_entry(value) if is_entry_key(key) else key.startswith("hit."):
            await anyio.to_thread.run_sync(self._results.put, key, value, self._find)

    async def delete(self, key: str) -> None:
        await anyio.to_thread.run_sync(self._results.delete, key)

    async def entries(self, under: str) -> list[Kept]:
        return await anyio.to_thread.run_sync(self._results.entries, under, abandon_on_cancel=True)

    def _find(self, digest: str) -> bytes | Path | None:
        data = self._server.objects.get(digest)
        return self._server.object_files.get(digest) if data is None else data


def _is_entry(value: bytes) -> bool:
    try:
        return isinstance(decode_entry(value), CacheEntry)
    except RemoteProtocolError:
        return False
