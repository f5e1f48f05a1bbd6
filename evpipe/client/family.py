"""The runs that the steps of a run are, and those of their steps, all the way down."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Final

import anyio

from evpipe.bus.protocol import Bus
from evpipe.client.fold import RunFold
from evpipe.client.logs import LogEntry, entries_of, read_logs, told_of
from evpipe.core.lineage import child_run_id
from evpipe.core.machine import Run
from evpipe.core.names import for_people, from_people
from evpipe.errors import NotFound, RemoteProtocolError
from evpipe.wire.messages import parent_in
from evpipe.wire.subjects import RUN

#: Logs that are read at the same time.
READS_MAX: Final = 16
#: Runs whose lines are read together, in the order in which they were told.
TOGETHER_MAX: Final = 100


async def folded(bus: Bus, run_id: str) -> Run:
    """Give a run as the log shows it now."""
    fold = RunFold(bus, run_id)
    last = await bus.last_sequence()
    async for records in bus.replay([bus.subjects.events_of_run(run_id)], up_to=last):
        for record in records:
            await fold.fold(record)
    return fold.run


async def runs_below(bus: Bus, run: Run) -> dict[str, Run]:
    """Give the runs that the last attempts of a run's steps are, and those below them, as the log shows them now.

    Returns:
        By the path of the step, such as "inner" and "inner/fit[2]"; each after the one that it is a step of.
    """
    found: dict[str, Run] = {}
    level = {"": run}
    limiter = anyio.CapacityLimiter(READS_MAX)
    while level:
        paths = {
            f"{path}{for_people(name)}": child_run_id(above.id, name, state.attempt)
            for path, above in level.items()
            for name, state in above.steps.items()
            if state.attempt and above.spec(name).child is not None
        }
        read: dict[str, Run] = {}

        async def look(path: str, run_id: str, read: dict[str, Run] = read) -> None:
            async with limiter:
                read[path] = await folded(bus, run_id)

        async with anyio.create_task_group() as task_group:
            for path, run_id in paths.items():
                task_group.start_soon(look, path, run_id)
        # What was never submitted is no run: its arguments could not be made.
        below = {path: read[path] for path in paths if read[path].submitted_at_s is not None}
        found |= below
        level = {f"{path}/": one for path, one in below.items()}
    return found


async def run_of_path(bus: Bus, run: Run, path: str) -> tuple[Run, str]:
    """Find the run that a step is a step of, by a path such as "inner/train", and the step's name there.

    Raises:
        NotFound: if there is none, or not yet.
    """
    *above, name = path.split("/")
    for outer in map(from_people, above):
        run = await folded(bus, child_of(run, outer))
    return run, name


def child_of(run: Run, step: str) -> str:
    """Give the id of the run that the last attempt of a step is.

    Args:
        step: its name on the bus.

    Raises:
        NotFound: if it is none, or not yet.
    """
    state = run.steps.get(step)
    if state is None or not state.attempt or run.spec(step).child is None:
        raise NotFound(f"run {run.id} has no step {for_people(step)!r} that is a run (yet)")
    return child_run_id(run.id, step, state.attempt)


# ---- what they write


async def lines_below(bus: Bus, run: Run, runs: Mapping[str, Run], *, attempt: int | None) -> AsyncIterator[LogEntry]:
    """Give the lines of a run and of those below it that there are now; steps are named by their paths."""
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


async def follow_lines_below(bus: Bus, run_id: str, pipeline: str, *, after: int) -> AsyncIterator[LogEntry]:
    """Give the lines of a run and of those below it as they come, until it has ended; steps are named by their paths.

    It reads what every run tells: for who hosts them.

    Args:
        after: sequence of the telemetry at which the run had not begun.
    """
    paths: dict[str, str | None] = {run_id: ""}
    subject = bus.subjects.telemetry_of("*")
    async with aclosing(told_of(bus, run_id, pipeline, subject, follow=True, after=after)) as told:
        async for records in told:
            for found_in, entry in entries_of(bus, records):
                if found_in not in paths:
                    paths[found_in] = await _path_of(bus, found_in, paths)
                path = paths[found_in]
                if path is not None:
                    yield replace(entry, step=path + entry.step)


async def _path_of(bus: Bus, run_id: str, paths: Mapping[str, str | None]) -> str | None:
    """Give the path of the steps of a run; None if it is not below those whose paths are known."""
    steps: list[str] = []
    while run_id not in paths:
        try:
            record = await bus.last(bus.subjects.events_of_step(run_id, RUN, "submitted"))
        except RemoteProtocolError:
            return None
        parent = None if record is None else parent_in(record.payload)
        if parent is None:
            return None
        steps.append(for_people(parent.step))
        run_id = parent.run
    above = paths[run_id]
    return None if above is None else above + "".join(f"{step}/" for step in reversed(steps))
