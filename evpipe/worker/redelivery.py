"""What to do with a launch that may have been given to somebody before.

The acks prove nothing: a server that was killed forgets them, and a launch comes again while its owner is
alive when the server was away for longer than the ack wait. So the log is asked first, then the owner.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from evpipe.bus.protocol import Bus, Record
from evpipe.core.events import (
    Event,
    Finished,
    StepCached,
    StepCancelled,
    StepFailed,
    StepSkipped,
    StepStarted,
    StepSucceeded,
)
from evpipe.errors import RemoteProtocolError
from evpipe.wire.messages import decode_event
from evpipe.wire.subjects import LaunchSubject

#: Kinds that say how far attempts of a step have come.
KINDS: Final = ("started", "succeeded", "failed", "skipped", "cached", "cancelled")
#: Those that a worker tells of the end of an attempt.
_TOLD: Final = ("succeeded", "failed", "skipped")
QUESTIONS: Final = 3
QUESTION_S: Final = 1.0


class Verdict(Enum):
    """What becomes of the launch."""

    #: The attempt never began: run it.
    RUN = "run"
    #: It has ended, or a later one was launched: ack the launch.
    OVER = "over"
    #: Its owner lives: let go of the launch, the owner's heartbeat keeps it.
    OWNED = "owned"
    #: It began and nobody runs it: end it as lost.
    LOST = "lost"


async def examine(bus: Bus, launch: LaunchSubject) -> Verdict:
    """Find out about a launch that comes again."""
    if await bus.last(bus.subjects.events_of_step(launch.run, launch.step)) is None:
        # Nothing of this step is in the log: the usual case after a worker starts on a backlog.
        return await _unless_run_over(bus, launch, Verdict.RUN)
    started = False
    for kind in KINDS:
        record = await bus.last(bus.subjects.events_of_step(launch.run, launch.step, kind))
        event = _decoded(bus, record)
        if isinstance(event, (StepCancelled, StepCached)):
            return Verdict.OVER
        if isinstance(event, StepStarted):
            if event.attempt > launch.attempt:
                return Verdict.OVER
            started = event.attempt == launch.attempt
        elif _ends(event, launch):
            return Verdict.OVER
    # The newest of a kind may be a late repetition of an earlier attempt's, behind which this one's end is hidden.
    if await _ended_before(bus, launch):
        return Verdict.OVER
    if not started:
        return await _unless_run_over(bus, launch, Verdict.RUN)
    question = bus.subjects.who(launch.run, launch.step, launch.attempt)
    for _ in range(QUESTIONS):
        if await bus.ask(question, b"", timeout_s=QUESTION_S) is not None:
            return Verdict.OWNED
    # While the question was open the owner may have come to its end.
    if await _ended_meanwhile(bus, launch):
        return Verdict.OVER
    return Verdict.LOST


async def _unless_run_over(bus: Bus, launch: LaunchSubject, verdict: Verdict) -> Verdict:
    finished = _decoded(bus, await bus.last(bus.subjects.events_of_step(launch.run, "_", "finished")))
    return Verdict.OVER if isinstance(finished, Finished) else verdict


async def _ended_before(bus: Bus, launch: LaunchSubject) -> bool:
    over = False
    wanted = [bus.subjects.events_of_step(launch.run, launch.step, kind) for kind in _TOLD]
    async for records in bus.replay(wanted, up_to=await bus.last_sequence()):
        for record in records:
            event = _decoded(bus, record)
            over |= _ends(event, launch)
    return over


async def _ended_meanwhile(bus: Bus, launch: LaunchSubject) -> bool:
    for kind in (*_TOLD, "cached", "cancelled"):
        event = _decoded(bus, await bus.last(bus.subjects.events_of_step(launch.run, launch.step, kind)))
        if isinstance(event, (StepCancelled, StepCached)):
            return True
        if _ends(event, launch):
            return True
    return False


def _ends(event: Event | None, launch: LaunchSubject) -> bool:
    """Say whether a worker has told the end of this attempt, or of a later one."""
    return isinstance(event, (StepSucceeded, StepFailed, StepSkipped)) and event.attempt >= launch.attempt


def _decoded(bus: Bus, record: Record | None) -> Event | None:
    if record is None:
        return None
    try:
        return decode_event(bus.subjects.parse_event(record.subject), record.payload, record.at_s)
    except RemoteProtocolError:
        return None
