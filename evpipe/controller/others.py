"""Steps of runs that this controller does not lead: what their logs say of them, read at the leader of the stream."""

from __future__ import annotations

from typing import Final

from evpipe.bus.protocol import Bus
from evpipe.core.events import Event, Finished, StepSkipped, StepSucceeded
from evpipe.errors import RemoteProtocolError
from evpipe.wire.messages import decode_event

#: Kinds of events after which a step does not run any more.
_ENDS: Final = ("succeeded", "cached", "cancelled", "skipped")


async def lives(bus: Bus, run: str, step: str, attempt: int = 0) -> bool:
    """Say whether a step is still to end, by its run's log; one that has failed may be tried again.

    Args:
        attempt: the end that a worker told of an earlier one does not count: it came too late.
    """
    submitted = await bus.last(bus.subjects.events_of_step(run, "_", "submitted"))
    if submitted is None or isinstance(await _event(bus, run, "_", "finished"), Finished):
        return False
    for kind in _ENDS:
        event = await _event(bus, run, step, kind)
        late = isinstance(event, (StepSucceeded, StepSkipped)) and 0 < event.attempt < attempt
        if event is not None and not late:
            return False
    return True


async def _event(bus: Bus, run: str, step: str, kind: str) -> Event | None:
    record = await bus.last(bus.subjects.events_of_step(run, step, kind))
    if record is None:
        return None
    try:
        return decode_event(bus.subjects.parse_event(record.subject), record.payload, record.at_s)
    except RemoteProtocolError:
        return None
