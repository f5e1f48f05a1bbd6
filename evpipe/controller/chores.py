"""What a controller does beside deciding: the registry, and removing the launches of ended runs.

Nothing waits for a chore and no decision reads what it writes, so chores run behind the fold, one at a
time, the newest word per run. A chore that is never done costs space, not truth: the next takeover
truncates the queue, and the registry is written again by the next event of the run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

import anyio
import structlog

from evpipe.bus.protocol import Bus
from evpipe.errors import BusError, RemoteProtocolError
from evpipe.wire.registry import BUCKET, RunEntry, decode_run_entry, encode_run_entry

log = structlog.get_logger(__name__)

TRIES_MAX: Final = 5


class Chores:
    """The queue of chores of one controller."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._registry = bus.bucket(BUCKET)
        self._entries: dict[str, RunEntry] = {}
        #: Revisions of the entries that this controller wrote last.
        self._revisions: dict[str, int] = {}
        self._ended: deque[str] = deque()
        self._wake = anyio.Event()

    def show(self, entry: RunEntry) -> None:
        """Bring the registry up to this entry."""
        self._entries[entry.run] = entry
        self._wake.set()

    async def restore(self, ended: Iterable[RunEntry]) -> None:
        """Show ended runs that the registry does not show as such: somebody deleted it, or a leader died before."""
        known = {entry.key: _sequence(entry.value) for entry in await self._registry.entries()}
        for entry in ended:
            if known.get(entry.run, 0) < entry.sequence:
                self.show(entry)

    def drop_launches(self, run: str) -> None:
        self._ended.append(run)
        self._wake.set()

    async def run(self) -> None:
        while True:
            self._wake = anyio.Event()
            while self._entries or self._ended:
                try:
                    if self._entries:
                        await self._write(self._entries.pop(next(iter(self._entries))))
                    if self._ended:
                        await self._bus.drop_launches(self._ended.popleft())
                except BusError as error:
                    log.warning("chore_failed", error=str(error))
            await self._wake.wait()

    async def _write(self, entry: RunEntry) -> None:
        """Write forwards only: an entry that shows a later event stays, whoever wrote it."""
        expected = self._revisions.pop(entry.run, None)
        data = encode_run_entry(entry)
        for _ in range(TRIES_MAX):
            if expected is None:
                found = await self._registry.get(entry.run)
                if found is not None and _sequence(found.value) >= entry.sequence:
                    return
                expected = found.revision if found is not None else 0
            revision = await self._registry.put(entry.run, data, expected=expected)
            if revision is not None:
                if entry.ended_at_s is None:
                    self._revisions[entry.run] = revision
                return
            expected = None


def _sequence(data: bytes) -> int:
    try:
        return decode_run_entry(data).sequence
    except RemoteProtocolError:
        return 0
