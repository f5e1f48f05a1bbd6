"""A run in the hands of a client: wait for it, watch it, answer its steps, cancel it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio

from evpipe.bus.protocol import Bus
from evpipe.client.artifact_store import ArtifactStore
from evpipe.client.cancelling import request_cancel
from evpipe.client.events import RunEvent, run_event
from evpipe.client.family import Family, has_children, runs_below, watch_family
from evpipe.client.family_logs import follow_lines_below, follow_progress_below, lines_below, lines_of_step
from evpipe.client.fold import RunFold, folded
from evpipe.client.logs import LogEntry, check_choice, read_logs
from evpipe.client.notes import RECENT_S, follow_progress, read_metrics, read_progress, read_recorded
from evpipe.client.values import look_of, opener_of, recall_of
from evpipe.client.waiting import WaitingStep, answer_step, waiting_steps
from evpipe.client.why import explained
from evpipe.core.events import CancelCause, CancelRequested
from evpipe.core.machine import Run
from evpipe.core.names import for_people, from_people, nearest
from evpipe.core.notes import MetricPoint
from evpipe.core.states import STEP_VALUES, RunStatus
from evpipe.core.why import Why
from evpipe.errors import NotFound, WaitTimeout
from evpipe.sdk.result import RunResult
from evpipe.wire.notes import Progress

if TYPE_CHECKING:
    from evpipe.client.client import Client

R_co = TypeVar("R_co", covariant=True)


class RunHandle(Generic[R_co]):
    """A submitted run; made by `Client.submit` and `Client.get_run`."""

    def __init__(self, bus: Bus, run_id: str, pipeline: str, connect: Callable[[], Client] | None = None) -> None:
        self._bus = bus
        #: Makes another client of the installation, for values that are asked for when this one is gone.
        self._connect = connect
        self.id = run_id
        self.pipeline = pipeline

    async def result(self, timeout_s: float | None = None, *, allow_pickle: bool = False) -> RunResult[R_co]:
        """Wait for the end of the run and give its result.

        Args:
            timeout_s: seconds to wait; None: for ever.
            allow_pickle: whether values that are pickles may be read, which runs what is in them.

        Raises:
            WaitTimeout: if it has not ended by then; it goes on.
        """
        run = Run(self.id)
        try:
            with anyio.fail_after(timeout_s):
                async for folded in self.watch():
                    run = folded
        except TimeoutError:
            raise WaitTimeout(f"run {self.id} has not ended after {timeout_s:g} s; it goes on") from None
        return self.result_of(run, allow_pickle=allow_pickle)

    def result_of(self, run: Run, *, allow_pickle: bool = False) -> RunResult[Any]:
        """Give the result that a folded log shows; its values may be read after the client is gone."""
        opener = None if self._connect is None else opener_of(self._connect, allow_pickle=allow_pickle)
        look = None if self._connect is None else look_of(self._connect, allow_pickle=allow_pickle)
        recall = None if self._connect is None else recall_of(self._connect, self.pipeline)
        return RunResult.of(run, opener, look, recall)

    async def value(self, step: str | None = None, *, allow_pickle: bool = False) -> Any:
        """Give what the run, or one of its steps, gave, with all that is stored beside the log.

        Files and folders in it are below a temporary folder, until this process ends.

        Args:
            step: its name; None: the value of the run.
            allow_pickle: whether it may be a pickle, which runs what is in it.

        Raises:
            NotFound: if the run has no such step.
            RunFailed: if there is no value, because it did not succeed (yet).
            ArtifactUnreadable: if a part of it is missing, damaged, or cannot be read in this process.
        """
        run = await self.state()
        result = RunResult.of(run)
        if step is None:
            found = result.value
        elif for_people(step) in result.steps:
            found = result.steps[for_people(step)].value
        else:
            raise NotFound(f"run {self.id} has no step {step!r}{nearest(step, result.steps)}")
        return await ArtifactStore(self._bus.objects).load(found, pickles=allow_pickle)

    async def watch(self) -> AsyncIterator[Run]:
        """Give the folded run after each batch of its events, until it has ended.

        It is the same object each time, changed in place.
        """
        fold = RunFold(self._bus, self.id)
        async with self._bus.follow([self._bus.subjects.events_of_run(self.id)]) as feed:
            async for records in feed:
                for record in records:
                    await fold.fold(record)
                yield fold.run
                if fold.run.ended:
                    return

    async def events(self) -> AsyncIterator[RunEvent]:
        """Give the run's events from the first on, until it has finished."""
        fold = RunFold(self._bus, self.id)
        async with self._bus.follow([self._bus.subjects.events_of_run(self.id)]) as feed:
            async for records in feed:
                for record in records:
                    await fold.fold(record)
                    event = run_event(record, self._bus.subjects)
                    if event is not None:
                        yield event
                    if fold.run.ended:
                        return

    async def watch_tree(self) -> AsyncGenerator[Family, None]:
        """Give the run and those that its steps are, all the way down, after each batch of their events.

        Ends when the run has ended. It is the same object each time, changed in place: `run`, `below` by the paths of
        the steps, `rows()` with the state of every step, and `counts()` of them.
        """
        async with aclosing(watch_family(self._bus, self.id, self.pipeline)) as family:
            async for found in family:
                yield found

    def logs(
        self, step: str | None = None, *, attempt: int | None = None, follow: bool = True, below: bool = False
    ) -> AsyncIterator[LogEntry]:
        """Give the lines that the run's steps write, for as long as they are kept (7 days, by default).

        Lines may be missing: what would have held a step up was left out, which an entry of the stream "evpipe"
        says, and what was told while there was no connection is lost.

        Args:
            step: only those of this step; of a run below by its path, as in `inner/train`. Of one that is a run, those
                of its steps, all the way down, which are named by their paths.
            attempt: only those of attempts with this number, from 1, of the steps that write.
            follow: go on until the run has ended; else end with what there is now.
            below: where no step is named, also those of the runs below, whose steps are named by their paths.

        Raises:
            NotFound: if the run has no such step.
            UsageError: if the attempt's number or the step's name can be none.
        """
        if step is not None:
            return lines_of_step(self._bus, self.id, self.pipeline, step, attempt=attempt, follow=follow)
        return self._logs(attempt, follow, below)

    async def _logs(self, attempt: int | None, follow: bool, below: bool) -> AsyncIterator[LogEntry]:
        choice = await check_choice(self._bus, self.id, None, attempt)
        run = await self.state() if below else None
        if run is None or not has_children(run):
            entries = read_logs(self._bus, self.id, self.pipeline, choice, attempt=attempt, follow=follow)
        elif follow:
            entries = follow_lines_below(self._bus, self.id, self.pipeline, attempt=attempt)
        else:
            entries = lines_below(self._bus, run, await self.below(run), attempt=attempt)
        async with aclosing(entries):
            async for entry in entries:
                yield entry

    async def below(self, run: Run | None = None) -> dict[str, Run]:
        """Give the runs that the steps of the run are, and those below them, as the log shows them now.

        Args:
            run: what `state` gave; None: it is read now.

        Returns:
            By the path of the step, such as `inner` and `inner/fit[2]`.
        """
        return await runs_below(self._bus, run or await self.state())

    async def why(self, step: str) -> Why:
        """Say why a step is as it is: what it waits for, who serves its queue, why it was skipped or failed.

        Args:
            step: its name; of an element of a mapped step as in `train[2]`, of a run below by its path, as in
                `inner/train`.

        Returns:
            A chain of causes; `because` has what each comes from, `roots()` where all of them end.

        Raises:
            NotFound: if the run has no such step.
            UsageError: if it is no text.
        """
        return await explained(self._bus, await folded(self._bus, self.id), step)

    async def metrics(self, step: str | None = None, *, attempt: int | None = None) -> list[MetricPoint]:
        """Give the points that the run's steps recorded with `current().metric`, as far as they are.

        Of an attempt that has ended every one is kept with its result. While it runs they are kept about every second
        (of a long one, every thousandth of its time), and at once when it is cancelled; what is newer is telemetry, of
        which some may be missing. So of one that is lost with its worker, those of the last second are.

        Args:
            step: only those of this step.
            attempt: only those of attempts with this number, from 1.

        Returns:
            The points, each attempt's in the order in which it recorded them; those of a cached step, which are of the
            attempt whose result it has, with the attempt 0.

        Raises:
            NotFound: if the run has no such step.
            UsageError: if the attempt's number or the step's name can be none.
            ArtifactUnreadable: if what is kept is missing or damaged.
        """
        choice = await check_choice(self._bus, self.id, step, attempt)
        return await read_metrics(self._bus, self.id, self.pipeline, choice, attempt)

    async def artifacts(self, step: str, *, attempt: int | None = None, allow_pickle: bool = False) -> dict[str, Any]:
        """Give what an attempt of a step kept with `current().artifact`, by name.

        While it runs they are kept as its points are (see `metrics`).

        Files and folders in it are below a temporary folder, until this process ends.

        Args:
            attempt: its number, from 1; None: the last one.
            allow_pickle: whether they may be pickles, which runs what is in them.

        Raises:
            NotFound: if the run has no such step.
            ArtifactUnreadable: if one is missing, damaged, or cannot be read in this process.
        """
        await check_choice(self._bus, self.id, step, attempt)
        name = from_people(step)
        stored: Mapping[str, Any] = {}
        if attempt is None:
            steps = (await self.state()).steps
            if name not in steps:
                raise NotFound(f"run {self.id} has no step {step!r}")
            state = steps[name]
            if state.notes is not None:
                stored = state.notes.artifacts
            elif state.status not in STEP_VALUES:
                attempt = state.attempt
        if attempt is not None:
            recorded = (await read_recorded(self._bus, self.id, self.pipeline, name)).get((name, attempt))
            stored = {} if recorded is None else recorded.artifacts
        store = ArtifactStore(self._bus.objects)
        return {name: await store.load(value, pickles=allow_pickle) for name, value in stored.items()}

    async def progress(self) -> dict[str, Progress]:
        """Give what the attempts that run now said last of their progress, by step."""
        return await read_progress(self._bus, await self.state())

    async def watch_progress(self) -> AsyncGenerator[Progress, None]:
        """Give what attempts say of their progress: what they said last, then what they say until the run has ended.

        Also those of the runs below, whose steps are named by their paths; of what they said before, that of the last
        ten minutes.
        """
        after = await self._bus.telemetry.last_sequence()
        run = await self.state()
        for told in (await read_progress(self._bus, run)).values():
            yield told
        if has_children(run):
            recent = follow_progress_below(self._bus, self.id, self.pipeline, since_s=time.time() - RECENT_S)
        else:
            recent = follow_progress(self._bus, self.id, self.pipeline, after)
        async with aclosing(recent) as later:
            async for told in later:
                yield told

    async def state(self) -> Run:
        """Give the run as the log shows it now."""
        return (await folded(self._bus, self.id)).run

    async def status(self) -> RunStatus:
        return (await self.state()).status

    async def cancel(self, message: str = "") -> None:
        """Ask for the end of the run; nothing happens if it has ended, or was asked before.

        Args:
            message: shown as the reason of what is cancelled.
        """
        event = CancelRequested(cause=CancelCause.REQUEST, message=message or "cancelled on request")
        await request_cancel(self._bus, self.pipeline, self.id, event)

    async def approve(self, step: str, answer: Any = True, *, by: str | None = None, message: str = "") -> None:
        """Answer a step that waits for a person; the first answer counts, and is its value.

        Args:
            step: its name.
            answer: False rejects; what a step takes is the type that its `approval` names.
            by: who answers; None: the user of this process.
            message: kept beside it.

        Raises:
            NotFound: if the run has no such step.
            NotWaiting: if the step does not wait for an answer, not yet or not any more.
            AlreadyAnswered: if somebody was first; says who.
            UsageError: if the answer is not one that it takes; says what would be.
        """
        await answer_step(self._bus, self.id, self.pipeline, step, answer, by=by, message=message)

    async def waiting(self) -> list[WaitingStep]:
        """Give the steps of the run that wait now: for an answer, an event, or a moment."""
        run = await self.state()
        return [] if run.ended else waiting_steps(run)

    def __repr__(self) -> str:
        return f"<run {self.id} of pipeline {self.pipeline!r}>"


AnyRunHandle = RunHandle[Any]
