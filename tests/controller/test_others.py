"""What is read of runs that a controller does not lead."""

from __future__ import annotations

import anyio

from evpipe.bus.memory import MemoryBus
from evpipe.controller.others import lives
from evpipe.core.events import Finished, StepSkipped, StepSucceeded
from evpipe.core.states import Reason, RunStatus
from evpipe.wire.messages import encode_event

RUN = "abcdefgh23"


def test_an_end_that_came_too_late_ends_no_later_attempt() -> None:
    """The worker of a lost attempt may still tell what became of it, while the next one holds a semaphore."""

    async def main() -> None:
        async with MemoryBus() as bus:

            async def tell(event: StepSucceeded | StepSkipped | Finished) -> None:
                step, kind, payload = encode_event(event)
                await bus.append_wait(bus.subjects.event("demo", RUN, step, kind), payload)

            assert not await lives(bus, RUN, "s", 2), "there is no such run"
            await bus.append_wait(bus.subjects.event("demo", RUN, None, "submitted"), b"\x80")
            assert await lives(bus, RUN, "s", 2)
            await tell(StepSucceeded(step="s", attempt=1, value=1))
            await tell(StepSkipped(step="s", attempt=1, reason=Reason.CONDITION))
            assert await lives(bus, RUN, "s", 2)
            assert not await lives(bus, RUN, "s", 1)
            assert not await lives(bus, RUN, "s")
            await tell(StepSkipped(step="t"))
            assert not await lives(bus, RUN, "t", 2), "what the controller decides ends whatever there is"
            await tell(StepSucceeded(step="s", attempt=2, value=1))
            assert not await lives(bus, RUN, "s", 2)
            assert await lives(bus, RUN, "u", 1)
            await tell(Finished(status=RunStatus.SUCCEEDED))
            assert not await lives(bus, RUN, "u", 1)

    anyio.run(main)
