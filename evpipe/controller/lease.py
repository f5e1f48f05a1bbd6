"""Which controller leads. A lease only avoids waste: two leaders for a moment do nothing wrong."""

from __future__ import annotations

from typing import Final

import anyio
import structlog

from evpipe.bus.protocol import Bus

log = structlog.get_logger(__name__)

BUCKET: Final = "leases"
#: One lease covers all shards.
KEY: Final = "shards"
TTL_S: Final = 2.0
RENEW_EVERY_S: Final = 0.6
#: A standby looks this often whether the lease is free.
LOOK_EVERY_S: Final = 0.5


class Lease:
    """The right to lead, while it is renewed."""

    def __init__(self, bus: Bus, holder: str) -> None:
        self._bucket = bus.bucket(BUCKET)
        self._holder = holder.encode()
        self._revision = 0

    async def acquire(self) -> float:
        """Wait until the lease is free and take it.

        Returns:
            The bus's clock at about now, seconds since 1970.
        """
        waited = False
        while True:
            revision = await self._bucket.put(KEY, self._holder, expected=0, ttl_s=TTL_S)
            if revision is not None:
                self._revision = revision
                entry = await self._bucket.get(KEY)
                if entry is not None and entry.revision == revision:
                    return entry.at_s
            elif not waited:
                waited = True
                log.info("controller_standing_by")
            await anyio.sleep(LOOK_EVERY_S)

    async def keep(self) -> None:
        """Renew the lease until it is lost, then return."""
        while True:
            await anyio.sleep(RENEW_EVERY_S)
            revision = await self._bucket.put(KEY, self._holder, expected=self._revision, ttl_s=TTL_S)
            if revision is None:
                # Late. If nobody has it, it is taken again: what is folded here is as good as ever, and whoever led
                # meanwhile has said so in the log.
                revision = await self._retaken()
                log.warning("controller_deposed" if revision is None else "lease_renewed_late")
            if revision is None:
                return
            self._revision = revision

    async def _retaken(self) -> int | None:
        entry = await self._bucket.get(KEY)
        if entry is None:
            return await self._bucket.put(KEY, self._holder, expected=0, ttl_s=TTL_S)
        # A renewal that was answered too late is ours all the same.
        return entry.revision if entry.value == self._holder else None

    async def release(self) -> None:
        """Let another have it at once, if it is still held."""
        entry = await self._bucket.get(KEY)
        if entry is not None and entry.value == self._holder:
            await self._bucket.delete(KEY)
