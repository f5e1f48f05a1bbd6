"""An event as a subscriber sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from evpipe.bus.protocol import Record
from evpipe.core.names import for_people
from evpipe.errors import RemoteProtocolError
from evpipe.wire.codec import decode_map
from evpipe.wire.subjects import Subjects

#: Fields that name a step of another run: the one that a run is, the one whose result was taken.
_STEPS_IN: Final = frozenset({"parent", "from"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """One event of a run's log."""

    #: "submitted", "started", "succeeded", …: the last token of its subject.
    kind: str
    run: str
    pipeline: str
    #: As people write it: an element of a mapped step is "train[2]". None for an event of the run itself.
    step: str | None
    #: 0 where it is about none.
    attempt: int
    #: When the log took it, UTC.
    at: datetime
    #: Its place in the log: grows with time, over all runs.
    sequence: int
    #: Everything else that it says.
    data: Mapping[str, Any]


def run_event(record: Record, subjects: Subjects) -> RunEvent | None:
    """Make an event of a record; None if it is not one that can be read."""
    try:
        subject = subjects.parse_event(record.subject)
        data = dict(decode_map(record.payload, f"the event {subject.kind!r}").map)
    except RemoteProtocolError:
        return None
    data.pop("v")
    attempt = data.pop("attempt", 0)
    for told_of in _STEPS_IN & data.keys():
        other = data[told_of]
        if isinstance(other, dict) and isinstance(other.get("step"), str):
            data[told_of] = {**other, "step": for_people(other["step"])}
    return RunEvent(
        kind=subject.kind,
        run=subject.run,
        pipeline=subject.pipeline,
        step=None if subject.step is None else for_people(subject.step),
        attempt=attempt if isinstance(attempt, int) else 0,
        at=datetime.fromtimestamp(record.at_s, UTC),
        sequence=record.sequence,
        data=data,
    )
