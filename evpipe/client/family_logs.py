"""What the steps of a run and of those below it write; steps are named by their paths."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Final

import anyio

from evpipe.bus.protocol import Bus, Record
from evpipe.client.family import FamilyFold, folded, run_of_path, runs_below
from evpipe.client.growing import GrowingFeed, Told
from evpipe.client.logs import LOOKS_MAX, SETTLE_S, Choice, LogEntry, check_choice, entries_of, next_of, read_logs
from evpipe.client.notes import progress_in
from evpipe.core.machine import Run
from evpipe.wire.notes import PROGRESS, Progress

#: Runs whose lines are read together, in the order in which they were told; a server is slow with more.
TOGETHER_MAX: Final = 32
_ALL: Final = Choice(None)


async def lines_below(
    bus: Bus, run: Run, runs: Mapping[str, Run], *, attempt: int | None, choice: Choice = _ALL
) -> AsyncGenerator[LogEntry, None]:
    """Give the lines of a run and of those below it that there are now.

    Args:
        runs: those below it, by the paths of the steps that they are.
        choice: of a step that is a run: only of those that it is and has below it.
    """
    paths = {} if choice.is_run else {run.id: ""}
    paths |= {one.id: f"{path}/" for path, one in runs.items() if choice.takes(_first(path))}
    up_to = await bus.telemetry.last_sequence()
    ids = list(paths)
    for i in range(0, len(ids), TOGETHER_MAX):
        subjects = [bus.subjects.telemetry_of(run_id, None, attempt) for run_id in ids[i : i + TOGETHER_MAX]]
        async for records in bus.telemetry.replay(subjects, up_to=up_to):
            for record in records:
                for run_id, entry in entries_of(bus, [record]):
                    yield replace(entry, step=paths[run_id] + entry.step)


async def lines_of_step(
    bus: Bus, run_id: str, pipeline: str, path: str, *, attempt: int | None, follow: bool
) -> AsyncGenerator[LogEntry, None]:
    """Give the lines of a step of a run or, by its path, of one below it; as `RunHandle.logs`."""
    above, slash, name = path.rpartition("/")
    if slash:
        inside, name = await run_of_path(bus, await folded(bus, run_id), path)
        run_id, pipeline = inside.id, inside.graph.pipeline if inside.graph is not None else ""
    choice = await check_choice(bus, run_id, name, attempt)
    if not choice.is_run:
        entries = read_logs(bus, run_id, pipeline, choice, attempt=attempt, follow=follow)
    elif follow:
        entries = follow_lines_below(bus, run_id, pipeline, attempt=attempt, choice=choice)
    else:
        run = await folded(bus, run_id)
        entries = lines_below(bus, run, await runs_below(bus, run), attempt=attempt, choice=choice)
    async with aclosing(entries):
        async for entry in entries:
            yield replace(entry, step=above + slash + entry.step)


async def follow_lines_below(
    bus: Bus, run_id: str, pipeline: str, *, attempt: int | None = None, choice: Choice = _ALL
) -> AsyncGenerator[LogEntry, None]:
    """Give the lines of a run and of those below it as they come, until it has ended.

    Args:
        choice: of a step that is a run: only of those that it is and has below it.
    """
    async with aclosing(_told(bus, run_id, pipeline, Told(bus, attempt=attempt), choice)) as told:
        async for records, prefixes in told:
            for found_in, entry in entries_of(bus, records):
                path = prefixes[found_in] + entry.step
                if choice.takes(_first(path)):
                    yield replace(entry, step=path)


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
    bus: Bus, run_id: str, pipeline: str, source: Told, choice: Choice = _ALL
) -> AsyncGenerator[tuple[list[Record], Mapping[str, str]], None]:
    """Give what a run and those below it tell until it has ended, with the beginnings of the paths by run.

    Args:
        choice: those below that are not of it are left out.
    """
    async with FamilyFold(bus, run_id, pipeline) as fold, GrowingFeed(source) as told:
        told.add(fold.root)
        while not fold.family.run.ended:
            records, events = await next_of(told, fold.feed)
            for member in await fold.fold(events):
                if choice.takes(_first(fold.prefixes[member.run])):
                    told.add(member)
            if records:
                yield records, fold.prefixes
        for member in await fold.rest():
            if choice.takes(_first(fold.prefixes[member.run])):
                told.add(member)
        for look in range(LOOKS_MAX):
            # What was told before the run's end may have arrived after the news of it.
            if look:
                await anyio.sleep(SETTLE_S)
            found = False
            async with aclosing(told.rest(await bus.telemetry.last_sequence())) as batches:
                async for records in batches:
                    found = True
                    yield records, fold.prefixes
            if look and not found:
                return


def _first(path: str) -> str:
    return path.partition("/")[0]
