"""What attempts recorded beside their output, as a client reads it: from the log, and while they run from telemetry."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import structlog

from evpipe.bus.protocol import Bus, Record
from evpipe.client.artifact_store import ArtifactStore
from evpipe.client.logs import Choice, told_of
from evpipe.core.events import StepCached, StepFailed, StepSkipped, StepSucceeded
from evpipe.core.machine import Run
from evpipe.core.names import for_people
from evpipe.core.notes import MetricPoint, Notes, points_of
from evpipe.core.states import StepStatus
from evpipe.errors import RemoteProtocolError
from evpipe.wire.messages import decode_event
from evpipe.wire.notes import METRIC, PROGRESS, Progress, decode_points, decode_progress

log = structlog.get_logger(__name__)

#: What was said of progress longer ago is looked for only where the step is known to run.
RECENT_S: Final = 600.0
_ENDS = ("succeeded", "failed", "skipped", "cached")
_UNDER_WAY = frozenset({StepStatus.QUEUED, StepStatus.RUNNING})


async def read_notes(bus: Bus, run_id: str, pipeline: str, step: str | None = None) -> dict[tuple[str, int], Notes]:
    """Give what is kept of the attempts that have ended, by step and attempt; of cached steps the attempt is 0."""
    found: dict[tuple[str, int], Notes] = {}
    wanted = [bus.subjects.event(pipeline, run_id, step or "*", kind) for kind in _ENDS]
    async for records in bus.replay(wanted, up_to=await bus.last_sequence()):
        for record in records:
            try:
                event = decode_event(bus.subjects.parse_event(record.subject), record.payload, record.at_s)
            except RemoteProtocolError:
                continue
            if isinstance(event, (StepSucceeded, StepFailed, StepSkipped, StepCached)) and event.notes is not None:
                attempt = 0 if isinstance(event, StepCached) else event.attempt
                # What ends an attempt is the first that says so.
                found.setdefault((event.step, attempt), event.notes)
    return found


async def read_metrics(bus: Bus, run_id: str, pipeline: str, choice: Choice, attempt: int | None) -> list[MetricPoint]:
    """Give the points of a run's metrics; see `RunHandle.metrics`."""
    points: dict[tuple[str, int], list[MetricPoint]] = {}
    store = ArtifactStore(bus.objects)
    kept = await read_notes(bus, run_id, pipeline, choice.token)
    for (of, number), notes in kept.items():
        if choice.takes(of) and attempt in (None, number) and (notes.metrics or notes.left_out):
            points[of, number] = points_of(await store.load(notes.metrics), for_people(of), number)
    subject = bus.subjects.telemetry_of(run_id, choice.token, attempt, METRIC)
    async for records in bus.telemetry.replay([subject], up_to=await bus.telemetry.last_sequence()):
        for record in records:
            try:
                told = bus.subjects.parse_telemetry(record.subject)
                rows, _ = decode_points(record.payload)
                live = points_of(rows, for_people(told.step), told.attempt)
            except RemoteProtocolError as error:
                log.warning("points_unreadable", subject=record.subject, sequence=record.sequence, error=str(error))
                continue
            if choice.takes(told.step) and (told.step, told.attempt) not in kept:
                points.setdefault((told.step, told.attempt), []).extend(live)
    return [point for some in sorted(points.values(), key=_began_s) for point in some]


def _began_s(points: list[MetricPoint]) -> float:
    return points[0].at_s if points else 0.0


async def read_progress(bus: Bus, run: Run) -> dict[str, Progress]:
    """Give what the attempts that run said last of their progress, by step."""
    found: dict[str, Progress] = {}
    for name, state in run.steps.items():
        if state.status in _UNDER_WAY:
            record = await bus.telemetry.last(bus.subjects.telemetry(run.id, name, state.attempt, PROGRESS))
            told = progress_in(bus, record) if record is not None else None
            if told is not None:
                found[for_people(name)] = told
    return found


async def follow_progress(bus: Bus, run_id: str, pipeline: str, after: int) -> AsyncGenerator[Progress, None]:
    """Give what attempts say of their progress, until the run has ended."""
    subject = bus.subjects.telemetry_of(run_id, kind=PROGRESS)
    async with aclosing(told_of(bus, run_id, pipeline, subject, follow=True, after=after)) as batches:
        async for records in batches:
            for record in records:
                told = progress_in(bus, record)
                if told is not None:
                    yield told


def progress_in(bus: Bus, record: Record) -> Progress | None:
    """Read what an attempt says of its progress; None if nobody can."""
    try:
        subject = bus.subjects.parse_telemetry(record.subject)
        return decode_progress(record.payload, for_people(subject.step), subject.attempt)
    except RemoteProtocolError as error:
        log.warning("progress_unreadable", subject=record.subject, sequence=record.sequence, error=str(error))
        return None
