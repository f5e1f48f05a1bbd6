"""Asking for the end of a run: once, whoever asks, and not of one that has ended."""

from __future__ import annotations

from evpipe.bus.protocol import Bus, Refused
from evpipe.core.events import CancelRequested, Event
from evpipe.errors import RemoteProtocolError
from evpipe.wire.messages import decode_event, encode_event


async def request_cancel(bus: Bus, pipeline: str, run: str, event: CancelRequested) -> None:
    """Put a cancel into a run's log; nothing happens if it has ended, or was asked before."""
    _, kind, payload = encode_event(event)
    subject = bus.subjects.event(pipeline, run, None, kind)
    # What is there and cannot be read is no cancel and no end: nobody who folds the run takes it for one.
    while (await readable(bus, bus.subjects.event(pipeline, run, None, "finished")))[0] is None:
        found, sequence = await readable(bus, subject)
        if found is not None:
            return
        if await bus.append_wait(subject, payload, expected=sequence) is not Refused.SEQUENCE:
            return


async def readable(bus: Bus, subject: str) -> tuple[Event | None, int]:
    """Give the newest event of a subject, if it can be read, and the last sequence of that subject."""
    record = await bus.last(subject)
    if record is None:
        return None, 0
    try:
        event = decode_event(bus.subjects.parse_event(record.subject), record.payload, record.at_s)
    except RemoteProtocolError:
        event = None
    return event, record.sequence
