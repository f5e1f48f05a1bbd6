"""What the steps of a run and of those below it write; steps are named by their paths."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Final

from evpipe.bus.protocol import Bus, Record
from evpipe.client.family import FamilyFold, run_of_path
from evpipe.client.growing import GrowingFeed, Told
from evpipe.client.logs import LogEntry, entries_of, next_of, read_logs
from evpipe.client.notes import progress_in
from evpipe.core.machine import Run
from evpipe.wire.notes import PROGRESS, Progress

#: Runs whose lines are read together, in the order in which they were told; a server is slow with more.
TOGETHER_MAX: Final = 32


async def lines_below(bus: Bus, run: Run, runs: Mapping[str, Run], *, attempt: int | None) -> AsyncIterator[LogEntry]:
    """Give the lines of a run and of those below it that there are now."""
    paths = {run.id: "", **{one.id: f"{path}/" for path, one in runs.items()}}
    up_to = await bus.telemetry.last_sequence()
    ids = list(paths)
    for i in range(0, len(ids), TOGETHER_MAX):
        subjects = [bus.subjects.telemetry_of(run_id, None, attempt) for run_id in ids[i : i + TOGETHER_MAX]]
        async for records in bus.telemetry.replay(subjects, up_to=up_to):
            for record in records:
                for run_id, entry in entries_of(bus, [record]):
                    yield replace(entry, step=paths[run_id] + entry.step)


async def lines_of_path(bus: Bus, run: Run, path: str, *, attempt: int | None, follow: bool) -> AsyncIterator[LogEntry]:
    """Give the lines of a step of a run below; as `RunHandle.logs`."""
    inside, name = await run_of_path(bus, run, path)
    pipeline = inside.graph.pipeline if inside.graph is not None else ""
    above = path.rpartition("/")[0]
    async for entry in read_logs(bus, inside.id, pipeline, step=name, attempt=attempt, follow=follow):
        yield replace(entry, step=f"{above}/{entry.step}")


async def follow_lines_below(
    bus: Bus, run_id: str, pipeline: str, *, attempt: int | None = None
) -> AsyncGenerator[LogEntry, None]:
    """Give the lines of a run and of those below it as they come, until it has ended."""
    async with aclosing(_told(bus, run_id, pipeline, Told(bus, attempt=attempt))) as told:
        async for records, prefixes in told:
            for found_in, entry in entries_of(bus, records):
                yield replace(entry, step=prefixes[found_in] + entry.step)


async def follow_progress_below(
    bus: Bus, run_id: str, pipeline: str, *, since_s: float
) -> AsyncGenerator[Progress, None]:
    """Give what attempts in a run and in those below it say of their progress, until it has ended.

    Args:
        since_s: what was said before is left out: seconds since 1970.
    """
    async with aclosing(_told(bus, run_id, pipeline, Told(bus, kind=PROGRESS, since_s=since_s))) as told:
        async for records, prefixes in told:
            for record in records:
                progress = progress_in(bus, record)
                if progress is not None:
                    run = bus.subjects.parse_telemetry(record.subject).run
                    yield progress._replace(step=prefixes[run] + progress.step)


async def _told(
    bus: Bus, run_id: str, pipeline: str, source: Told
) -> AsyncGenerator[tuple[list[Record], Mapping[str, str]], None]:
    """Give what a run and those below it tell until it has ended, with the beginnings of the paths by run."""
    async with FamilyFold(bus, run_id, pipeline) as fold, GrowingFeed(source) as told:
        told.add(fold.root)
        while not fold.family.run.ended:
            records, events = await next_of(told, fold.feed)
            for member in await fold.fold(events):
                told.add(member)
            if records:
                yield records, fold.prefixes
        for member in await fold.rest():
            told.add(member)
        # What was told before the run's end may have arrived after the news of it.
        async for records in told.rest(await bus.telemetry.last_sequence()):
            yield records, fold.prefixes
