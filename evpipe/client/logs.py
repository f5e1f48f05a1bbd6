"""What the steps of a run write, as a client reads it: from telemetry, for as long as it is kept there."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import anyio
import structlog

from evpipe.bus.protocol import Bus, Record
from evpipe.client.fold import RunFold, find_step, folded
from evpipe.core.mapping import base_of
from evpipe.core.names import SEPARATOR, STEP_NAME, check_name, for_people, from_people, nearest
from evpipe.errors import NotFound, RemoteProtocolError, UsageError
from evpipe.wire.messages import decode_event
from evpipe.wire.subjects import RUN
from evpipe.wire.telemetry import decode_log

log = structlog.get_logger(__name__)

#: What was told before the news of a run's end may be stored after it, for a server has a queue for each stream: it is
#: looked for again after so many seconds until nothing more is found, and at most so often.
SETTLE_S: Final = 0.03
LOOKS_MAX: Final = 30
#: The stream of what evpipe itself says between the lines.
EVPIPE = "evpipe"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One line that a step wrote."""

    #: When, by its worker's clock, seconds since 1970.
    at_s: float
    step: str
    attempt: int
    #: "stdout", "stderr", "log" of what was logged with a level, or "evpipe" where lines are missing.
    stream: str
    #: Without the line's end, and else as the step wrote it: it may hold control characters.
    text: str
    #: "debug", "info", "warning", "error" or "critical" of what was logged; "" of other lines.
    level: str = ""
    #: What it was logged with: None, bools, numbers and texts.
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def at(self) -> datetime:
        """When, UTC."""
        return datetime.fromtimestamp(self.at_s, UTC)

    @property
    def line(self) -> str:
        """The line as a person reads it: with its level and its fields, if it has some."""
        if not self.level:
            return self.text
        return " ".join(
            [f"{self.level:<8} {self.text}", *(f"{name}={_shown(self.fields[name])}" for name in self.fields)]
        )


async def read_logs(
    bus: Bus, run_id: str, pipeline: str, choice: Choice, *, attempt: int | None, follow: bool
) -> AsyncGenerator[LogEntry, None]:
    """Give what a run's steps write; see `RunHandle.logs`."""
    subject = bus.subjects.telemetry_of(run_id, choice.token, attempt)
    async with aclosing(told_of(bus, run_id, pipeline, subject, follow=follow)) as told:
        async for records in told:
            for _, entry in entries_of(bus, records):
                if choice.takes(entry.step):
                    yield entry


async def told_of(
    bus: Bus, run_id: str, pipeline: str, subject: str, *, follow: bool, after: int = 0
) -> AsyncGenerator[list[Record], None]:
    """Give what the attempts of a run told on a subject: until the run has ended, or what there is now."""
    if follow:
        async with (
            bus.telemetry.follow([subject], after=after) as told,
            bus.follow([bus.subjects.event(pipeline, run_id, None, "finished")]) as ends,
        ):
            ended = False
            while not ended:
                records, end = await next_of(told, ends)
                if records:
                    yield records
                    after = records[-1].sequence
                ended = any(_is_end(bus, record) for record in end)
    for look in range(LOOKS_MAX if follow else 1):
        # What was told before the run's end may have arrived after the news of it.
        if look:
            await anyio.sleep(SETTLE_S)
        found = False
        async for records in bus.telemetry.replay([subject], up_to=await bus.telemetry.last_sequence(), after=after):
            found, after = True, records[-1].sequence
            yield records
        if look and not found:
            return


async def steps_of_run(bus: Bus, run_id: str) -> tuple[str, ...]:
    """Give the names of a run's steps, in the graph's order; none if its graph is not known."""
    graph = (await _submitted(bus, run_id)).run.graph
    return () if graph is None else tuple(graph.steps)


async def _submitted(bus: Bus, run_id: str) -> RunFold:
    fold = RunFold(bus, run_id)
    submits = bus.replay([bus.subjects.events_of_step(run_id, RUN, "submitted")], up_to=await bus.last_sequence())
    async for records in submits:
        for record in records:
            await fold.fold(record)
    return fold


@dataclass(frozen=True, slots=True)
class Choice:
    """Which steps of a run are meant."""

    #: As the bus names it; None: all.
    step: str | None
    #: Whether it is a mapped one, of which all elements are meant.
    of_elements: bool = False
    #: Whether it is a run, or its elements are: what it writes is what the steps of that do.
    is_run: bool = False

    @property
    def token(self) -> str | None:
        """What stands for it in a subject; None: all of the run, of which `takes` chooses."""
        return None if self.of_elements else self.step

    def takes(self, step: str) -> bool:
        if self.step is None:
            return True
        name = from_people(step)
        return name.startswith(self.step + SEPARATOR) if self.of_elements else name == self.step


async def check_choice(bus: Bus, run_id: str, step: str | None, attempt: int | None) -> Choice:
    """Refuse a step that the run does not have, and what is no number of an attempt.

    An element is taken for one that may come while it is not known which there are.

    Raises:
        NotFound, UsageError: as `RunHandle.logs`.
    """
    if attempt is not None and (isinstance(attempt, bool) or not isinstance(attempt, int) or attempt < 1):
        raise UsageError(f"attempt is {attempt!r}, it must be a whole number from 1")
    if step is None:
        return Choice(None)
    name = from_people(step)
    if STEP_NAME.match(name) is None:
        check_name("step", step)
    graph = (await _submitted(bus, run_id)).run.graph
    base = base_of(name)
    if graph is None:
        return Choice(name)
    if base not in graph.steps:
        raise NotFound(f"run {run_id} has no step {step!r}{nearest(base, graph.steps)}")
    if base != name:
        find_step((await folded(bus, run_id)).run, step)
    levels = 0 if (mapped := graph.steps[base].mapped) is None else mapped.levels
    of_elements = name.count(SEPARATOR) < levels
    return Choice(name, of_elements=of_elements, is_run=graph.steps[base].child is not None)


async def next_of(
    told: AsyncIterator[list[Record]], ends: AsyncIterator[list[Record]]
) -> tuple[list[Record], list[Record]]:
    """Wait for the next records of one of two feeds, or of both; a feed's wait may be cancelled and begun again."""
    found: tuple[list[Record], list[Record]] = ([], [])

    async def take(feed: AsyncIterator[list[Record]], taken: list[Record]) -> None:
        taken += await anext(feed)
        task_group.cancel_scope.cancel()

    # Nothing is given from inside it: a task group may not be left by another task, as a generator may be.
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(take, told, found[0])
        task_group.start_soon(take, ends, found[1])
    return found


def _is_end(bus: Bus, record: Record) -> bool:
    try:
        return decode_event(bus.subjects.parse_event(record.subject), record.payload, record.at_s) is not None
    except RemoteProtocolError:
        return False


def entries_of(bus: Bus, records: Iterable[Record]) -> Iterator[tuple[str, LogEntry]]:
    """Read what was told; gives each line with the run that it is of."""
    for record in records:
        try:
            subject = bus.subjects.parse_telemetry(record.subject)
            batch = decode_log(record.payload)
        except RemoteProtocolError as error:
            log.warning("output_unreadable", subject=record.subject, sequence=record.sequence, error=str(error))
            continue
        step, attempt = for_people(subject.step), subject.attempt
        if batch.left_out:
            at_s = batch.lines[0].at_s if batch.lines else record.at_s
            text = f"… {batch.left_out:,} {'line' if batch.left_out == 1 else 'lines'} left out"
            yield subject.run, LogEntry(at_s=at_s, step=step, attempt=attempt, stream=EVPIPE, text=text)
        for line in batch.lines:
            entry = LogEntry(
                at_s=line.at_s,
                step=step,
                attempt=attempt,
                stream=line.stream,
                text=line.text,
                level=line.level,
                fields=line.fields,
            )
            yield subject.run, entry


def _shown(value: object) -> str:
    text = value if type(value) is str else repr(value)
    return repr(text) if not text or any(c.isspace() or c in "\"'=" for c in text) else text
