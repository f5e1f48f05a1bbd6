"""The folders of attempts, and the lock on them."""

from __future__ import annotations

import anyio

from evpipe.bus.locks import FileLock
from evpipe.client.cache_folder import cache_folder
from evpipe.worker.scratch import Scratch


def test_a_worker_that_is_cancelled_leaves_nothing() -> None:
    """Neither its folder nor its lock, which would be held as long as the process lives."""

    async def main() -> None:
        scratch = Scratch("cancelled")
        with anyio.CancelScope() as scope:
            scratch.open()
            folder = scratch.new()
            await anyio.Path(folder).mkdir(parents=True)
            scope.cancel()
            await scratch.close()
        base = cache_folder("attempts")
        assert not [found for found in base.iterdir() if found.name.startswith("cancelled")]
        lock = FileLock.try_take(base / "cancelled.lock")
        assert lock is not None, "it is held"
        lock.release()
        lock.path.unlink()

    anyio.run(main)
