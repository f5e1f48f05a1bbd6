"""What attempts recorded beside their output, as a client reads it: from the log, and what is newer from telemetry.

Of an attempt whose end says what it recorded, that is all; of another, the log has it in pieces (see `wire.notes`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import structlog

from evpipe.bus.protocol import Bus, Record
from evpipe.client.artifact_store import ArtifactStore
from evpipe.client.logs import Choice, told_of
from evpipe.core.artifact import Artifact
from evpipe.core.events import StepCached, StepFailed, StepSkipped, StepSucceeded
from evpipe.core.machine import Run
from evpipe.core.names import for_people
from evpipe.core.notes import MetricPoint, Notes, points_of
from evpipe.core.states import StepStatus
from evpipe.errors import RemoteProtocolError
from evpipe.wire.messages import decode_event
from evpipe.wire.notes import (
    METRIC,
    PROGRESS,
    LivePoints,
    Piece,
    Progress,
    decode_piece,
    decode_points,
    decode_progress,
)
from evpipe.wire.subjects import PROGRESS as PIECE
from evpipe.wire.subjects import TelemetrySubject

log = structlog.get_logger(__name__)

#: What was said of progress longer ago is looked for only where the step is known to run.
RECENT_S: Final = 600.0
_KINDS: Final = (PIECE, "succeeded", "failed", "skipped", "cached")
_UNDER_WAY = frozenset({StepStatus.QUEUED, StepStatus.RUNNING})


@dataclass(slots=True)
class Recorded:
    """What the log has of what an attempt recorded."""

    #: It came with the attempt's end: this is all.
    ended: bool
    #: Of points, lists of rows or what stands for them, each with how many of its first the ones before it have.
    parts: list[tuple[Any, int]] = field(default_factory=list)
    #: Points in all of them, and before what is missing between them.
    count: int = 0
    #: Points that were more than are kept.
    left_out: int = 0
    artifacts: Mapping[str, Any] = field(default_factory=dict)
    #: Who told of it, if it is in pieces.
    worker: str = ""


#: Of pieces: by worker, in the order in which they began to tell, and by number.
_Pieces: TypeAlias = dict[str, dict[int, Piece]]


async def read_recorded(
    bus: Bus, run_id: str, pipeline: str, step: str | None = None
) -> dict[tuple[str, int], Recorded]:
    """Give what the log has of what attempts recorded, by step and attempt; of cached steps the attempt is 0."""
    ends: dict[tuple[str, int], Recorded] = {}
    pieces: dict[tuple[str, int], _Pieces] = {}
    wanted = [bus.subjects.event(pipeline, run_id, step or "*", kind) for kind in _KINDS]
    async for records in bus.replay(wanted, up_to=await bus.last_sequence()):
        for record in records:
            try:
                subject = bus.subjects.parse_event(record.subject)
                if subject.kind == PIECE:
                    piece = decode_piece(record.payload)
                    told = pieces.setdefault((subject.step or "", piece.attempt), {})
                    # One that is there twice is the same both times.
                    told.setdefault(piece.worker, {}).setdefault(piece.number, piece)
                    continue
                event = decode_event(subject, record.payload, record.at_s)
            except RemoteProtocolError:
                continue
            if isinstance(event, (StepSucceeded, StepFailed, StepSkipped, StepCached)) and event.notes is not None:
                attempt = 0 if isinstance(event, StepCached) else event.attempt
                # What ends an attempt is the first that says so.
                ends.setdefault((event.step, attempt), _whole(event.notes))
    return {key: _joined(told) for key, told in pieces.items() if key not in ends} | ends


def _whole(notes: Notes) -> Recorded:
    parts = [(notes.metrics, 0)] if isinstance(notes.metrics, Artifact) or notes.metrics else []
    return Recorded(ended=True, parts=parts, left_out=notes.left_out, artifacts=notes.artifacts)


def _joined(told: _Pieces) -> Recorded:
    """Put pieces together: where an attempt was executed twice, those of the execution that began to tell last."""
    worker, pieces = list(told.items())[-1]
    found = Recorded(ended=False, worker=worker)
    artifacts: dict[str, Any] = {}
    for number in sorted(pieces):
        piece = pieces[number]
        before = max(0, found.count - piece.offset)
        if piece.points > before:
            found.parts.append((piece.notes.metrics, before))
            found.count = piece.offset + piece.points
        found.left_out = max(found.left_out, piece.notes.left_out)
        artifacts.update(piece.notes.artifacts)
    found.artifacts = artifacts
    return found


async def _rows(store: ArtifactStore, recorded: Recorded) -> list[Any]:
    """Give the points of all parts, as rows that nobody has looked at."""
    rows: list[Any] = []
    for part, before in recorded.parts:
        found = await store.load(part)
        if not isinstance(found, (list, tuple)):
            raise RemoteProtocolError(f"points of metrics are of type {type(found).__name__}, not a list")
        rows += found[before:]
    return rows


async def recorded_notes(bus: Bus, run_id: str, pipeline: str, step: str, attempt: int) -> Notes | None:
    """Give what the log has of what one attempt recorded, with its points; None if it has nothing."""
    recorded = (await read_recorded(bus, run_id, pipeline, step)).get((step, attempt))
    if recorded is None:
        return None
    return await _notes(ArtifactStore(bus.objects), recorded)


async def fill_notes(bus: Bus, run: Run, pipeline: str) -> None:
    """Give the steps of a folded run what their last attempts recorded, where their end does not say it."""
    steps = {name: state for name, state in run.steps.items() if state.ended_by_others}
    if not steps:
        return
    kept, store = await read_recorded(bus, run.id, pipeline), ArtifactStore(bus.objects)
    for name, state in steps.items():
        recorded = kept.get((name, state.attempt))
        if recorded is not None:
            state.notes = await _notes(store, recorded)


async def _notes(store: ArtifactStore, recorded: Recorded) -> Notes:
    rows = await _rows(store, recorded)
    return Notes(metrics=rows, left_out=recorded.left_out, artifacts=recorded.artifacts)


async def read_metrics(bus: Bus, run_id: str, pipeline: str, choice: Choice, attempt: int | None) -> list[MetricPoint]:
    """Give the points of a run's metrics; see `RunHandle.metrics`."""
    points: dict[tuple[str, int], list[MetricPoint]] = {}
    store = ArtifactStore(bus.objects)
    # Before the log: what is told meanwhile is in the log by then, or here.
    subject = bus.subjects.telemetry_of(run_id, choice.token, attempt, METRIC)
    live: list[tuple[TelemetrySubject, LivePoints, list[MetricPoint]]] = []
    async for records in bus.telemetry.replay([subject], up_to=await bus.telemetry.last_sequence()):
        for record in records:
            try:
                told = bus.subjects.parse_telemetry(record.subject)
                batch = decode_points(record.payload)
                live.append((told, batch, points_of(batch.rows, for_people(told.step), told.attempt)))
            except RemoteProtocolError as error:
                log.warning("points_unreadable", subject=record.subject, sequence=record.sequence, error=str(error))
    kept = await read_recorded(bus, run_id, pipeline, choice.token)
    for (of, number), recorded in kept.items():
        if choice.takes(of) and attempt in (None, number) and recorded.parts:
            points[of, number] = points_of(await _rows(store, recorded), for_people(of), number)
    for told, batch, some in live:
        key = (told.step, told.attempt)
        if not choice.takes(told.step):
            continue
        if key in kept:
            # Only what is newer, of the same execution.
            recorded = kept[key]
            if recorded.ended or batch.worker != recorded.worker:
                continue
            some = some[max(0, recorded.count - batch.offset) :]
            recorded.count = max(recorded.count, batch.offset + len(batch.rows))
        points.setdefault(key, []).extend(some)
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
