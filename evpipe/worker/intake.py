"""How many launches to ask for, and from which queue: as many as there are free slots, queues strictly in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Final, Self

import anyio

from evpipe.bus.clock import loop_clock
from evpipe.bus.protocol import Bus, Delivery, Pull
from evpipe.wire.subjects import DEFAULT_PRIORITY

#: A queue that had free slots waiting for this long without a launch has none: the next may be asked, too.
DRY_S: Final = 0.02


class Intake:
    """The pulls of one worker.

    Args:
        free: says how many slots are free now.
        deliver: called for each launch that comes.
    """

    def __init__(
        self,
        bus: Bus,
        queues: Sequence[str],
        slots: int,
        free: Callable[[], int],
        deliver: Callable[[Delivery], None],
        *,
        transient: bool,
    ) -> None:
        self._bus = bus
        self._queues = list(queues)
        # A request costs a message, so with many slots they are asked for by halves; with few, one by one.
        self._step = max(1, slots // 2)
        self._free = free
        self._deliver = deliver
        self._transient = transient
        self._pulls: list[Pull] = []
        #: Closes the pulls, in whatever task that is: they are no task group of ours.
        self._open = AsyncExitStack()
        #: When each queue was last asked, or gave something.
        self._busy_at: list[float] = [-math.inf] * len(self._queues)
        self._stack = AsyncExitStack()
        self._now = loop_clock()
        self._look = anyio.Event()
        self.closed = False

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._open)
        for i, queue in enumerate(self._queues):
            pull = self._bus.pull(queue, DEFAULT_PRIORITY, self._delivered_by(i), transient=self._transient)
            self._pulls.append(await self._open.enter_async_context(pull))
        if len(self._pulls) > 1:
            task_group = await self._stack.enter_async_context(anyio.create_task_group())
            self._stack.callback(task_group.cancel_scope.cancel)
            task_group.start_soon(self._look_further)
        self.refill()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closed = True
        await self._stack.__aexit__(None, None, None)

    async def close(self) -> None:
        """Ask for nothing more, and take back what was asked for; may be called before the block is left."""
        self.closed = True
        await self._open.aclose()

    def _delivered_by(self, i: int) -> Callable[[Delivery], None]:
        def delivered(delivery: Delivery) -> None:
            if self.closed:
                # Nobody runs it here any more; somebody else may at once.
                delivery.release()
                return
            self._busy_at[i] = self._now()
            self._deliver(delivery)
            self.refill()

        return delivered

    def refill(self) -> None:
        """Ask for launches for the slots that are free and not asked for yet."""
        if self.closed:
            return
        free = self._free()
        if len(self._pulls) == 1:
            self._ask(self._pulls[0], free)
            return
        now = self._now()
        for i, pull in enumerate(self._pulls):
            if self._ask(pull, free):
                self._busy_at[i] = now
            if now - self._busy_at[i] < DRY_S:
                # This queue may still give something: those after it wait until it is known to be dry.
                self._look.set()
                return

    def _ask(self, pull: Pull, free: int) -> bool:
        wanted = free - pull.asked
        if wanted <= 0 or (wanted < self._step and pull.asked):
            return False
        pull.ask(wanted)
        return True

    async def _look_further(self) -> None:
        while True:
            await self._look.wait()
            self._look = anyio.Event()
            await anyio.sleep(DRY_S)
            self.refill()
