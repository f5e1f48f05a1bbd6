"""How many launches each queue can take: the slots of its workers, the limit that an operator has set.

Looked at at once when something goes to a queue for the first time, then mostly while something is held back: a worker
that comes then is seen within a second, and where launches that count as under way are not in the queue, as after
somebody has emptied it, the rest does not wait for them.
"""

from __future__ import annotations

from typing import Final

import anyio
import structlog

from evpipe.bus.protocol import Bus
from evpipe.controller.dispatch import Dispatch, Lane
from evpipe.errors import BusError, RemoteProtocolError
from evpipe.wire.presence import BUCKET, decode_worker

log = structlog.get_logger(__name__)

LOOK_EVERY_S: Final = 1.0
#: While nothing is held back it is looked so often, for whoever asks.
REST_S: Final = 10.0
#: A lane in which nothing has ended for so many looks, and twice as many, …, is compared with what its queue has.
STILL_LOOKS: Final = 3


class QueueWatch:
    """Keeps the windows of a controller's lanes."""

    def __init__(self, bus: Bus, dispatch: Dispatch) -> None:
        self._bus = bus
        self._workers = bus.bucket(BUCKET)
        self._dispatch = dispatch
        self._crowded = anyio.Event()
        dispatch.crowded = self._crowded.set
        self._opened = anyio.Event()
        dispatch.opened = self._queue_opened
        #: By queue: attempts that had ended at the last look, and looks since one did.
        self._seen: dict[str, tuple[int, int]] = {}

    async def run(self) -> None:
        while True:
            with anyio.move_on_after(REST_S):
                await self._crowded.wait()
            self._opened = anyio.Event()
            if any(lane.held or lane.flying or lane.slots is None for lane in self._dispatch.lanes.values()):
                try:
                    await self._look()
                except BusError as error:
                    # What was known counts on.
                    log.debug("queues_not_watched", error=str(error))
            with anyio.move_on_after(LOOK_EVERY_S):
                await self._opened.wait()
                continue
            if not any(lane.held for lane in self._dispatch.lanes.values()):
                self._crowded = anyio.Event()
                self._dispatch.crowded = self._crowded.set
                self._seen.clear()

    def _queue_opened(self) -> None:
        self._opened.set()
        self._crowded.set()

    async def _look(self) -> None:
        slots = await self._slots()
        limits = await self._bus.queue_limits()
        still = [lane for lane in self._dispatch.lanes.values() if lane.held and self._is_still(lane)]
        there: dict[str, int] = {}
        if still:
            for state in await self._bus.lanes():
                there[state.queue] = there.get(state.queue, 0) + state.waiting + state.taken
        for lane in list(self._dispatch.lanes.values()):
            lane.slots = slots.get(lane.queue, 0)
            lane.limit = limits.get(lane.queue)
            if lane in still:
                # A queue that nobody has ever served is not listed, and has what was put there.
                lane.missing = max(0, lane.flying - there.get(lane.queue, lane.flying))
            lane.resize()
            if lane.held:
                self._dispatch.serve(lane)

    async def _slots(self) -> dict[str, int]:
        slots: dict[str, int] = {}
        for entry in await self._workers.entries():
            try:
                worker = decode_worker(entry.value)
            except RemoteProtocolError:
                continue
            if not worker.draining:
                for queue in worker.queues:
                    slots[queue] = slots.get(queue, 0) + worker.slots
        return slots

    def _is_still(self, lane: Lane) -> bool:
        """Say whether it is to be found out where the launches of a lane are."""
        ended = lane.done + lane.done_ever
        before, looks = self._seen.get(lane.queue, (ended, 0))
        looks = looks + 1 if before == ended else 0
        self._seen[lane.queue] = (ended, looks)
        if looks == 0 and lane.missing:
            # What is missing may have ended.
            return True
        return looks >= STILL_LOOKS and looks % STILL_LOOKS == 0
