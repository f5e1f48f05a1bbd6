"""What the runs that are led wait for: signals, and events of other runs.

    Await ─▶ watch ─▶ look back (from where the wait began) ─┐
                      live: signals, records of the log ─────┴─▶ first that matches ─▶ StepReceived into the log

A watch is registered before it is looked back for, so nothing falls between what is read and what comes. What comes
meanwhile is held until that is done: the first in the stream counts, wherever it was seen. Two controllers that see the
same decide the same, and one of them is refused; whoever takes over looks back again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel
import structlog
from anyio.abc import TaskGroup

from evpipe.bus.protocol import Bus, Record
from evpipe.client.events import RunEvent, run_event
from evpipe.core.commands import Await
from evpipe.core.events import Decision, Failure, StepFailed, StepReceived
from evpipe.core.states import Reason, StepStatus
from evpipe.core.waits import WaitKind, matches
from evpipe.errors import EvpipeError, RemoteProtocolError
from evpipe.wire.signals import decode_signal
from evpipe.wire.subjects import RUN, EventSubject

if TYPE_CHECKING:
    from evpipe.controller.desk import Case

log = structlog.get_logger(__name__)

#: Watches that look back at the same time: each reads a stream.
LOOKING_BACK_MAX: Final = 8
#: Signals and records looked at before others get a turn on the loop.
TURN: Final = 64
#: Pause before a decision that was refused is looked at again: by then the log has shown what took its place.
AGAIN_S: Final = 0.5
#: The server's moments are read as floats and asked for in microseconds.
ROUNDING_S: Final = 0.001


class Watch:
    """One step that waits for an event."""

    __slots__ = ("arguments", "case", "held", "kinds", "looked_back", "of", "since_s", "step", "value")

    def __init__(self, case: Case, step: str) -> None:
        spec, state = case.run.spec(step), case.run.steps[step]
        assert spec.wait is not None
        assert state.started_at_s is not None
        arguments: Mapping[str, Any] = case.run.arguments_of(step)
        since_s = (case.run.submitted_at_s or 0.0) if spec.wait.since_submit else state.started_at_s
        self.case = case
        self.step = step
        self.arguments = arguments
        #: What it is found by: the name of a signal, or a run, or a pipeline.
        self.of: tuple[str, str] = ("signal", str(arguments.get("name")))
        #: Kinds of events that end it; none of a signal.
        self.kinds: tuple[str, ...] = ()
        #: What is older does not count; None: of a certain run all does.
        self.since_s: float | None = since_s
        if spec.wait.kind is WaitKind.RUN_EVENT:
            kind = str(arguments["kind"])
            # What came from the cache has succeeded.
            self.kinds = ("succeeded", "cached") if kind == "succeeded" else (kind,)
            if "run" in arguments:
                self.of, self.since_s = ("run", str(arguments["run"])), None
            else:
                self.of = ("pipeline", str(arguments["pipeline"]))
        #: Whether all that came before it was registered has been looked at, and the first that came meanwhile.
        self.looked_back = False
        self.held: tuple[Any] | None = None
        #: What has come, while it is not in the log.
        self.value: tuple[Any] | None = None

    @property
    def of_signal(self) -> bool:
        return self.of[0] == "signal"

    @property
    def waits(self) -> bool:
        """Whether the log still wants to know."""
        run = self.case.run
        state = run.steps.get(self.step)
        return state is not None and state.status is StepStatus.RUNNING and run.may_go_on(self.step) and not run.ended

    def given(self, record: Record, payload: Any) -> tuple[Any] | None:
        """Give what this record is to the step; None if it is not what it waits for.

        Args:
            payload: what was read of the record: of a signal its payload, of a record of the log its event.
        """
        if self.since_s is not None and record.at_s < self.since_s:
            return None
        if self.of_signal:
            return (payload,) if matches(self.arguments.get("match") or {}, payload) else None
        event: RunEvent = payload
        if event.kind not in self.kinds or event.step != self.arguments.get("step"):
            return None
        if (event.run if self.of[0] == "run" else event.pipeline) != self.of[1]:
            return None
        return (
            {
                "run": event.run,
                "pipeline": event.pipeline,
                "step": event.step,
                "kind": event.kind,
                "attempt": event.attempt,
                "at": record.at_s,
                "data": dict(event.data),
            },
        )

    def subjects(self, bus: Bus) -> list[str]:
        """Give the subjects of what it may have missed."""
        subjects = bus.subjects
        if self.of_signal:
            return [subjects.signal(self.of[1])]
        step = self.arguments.get("step") or RUN
        if self.of[0] == "run":
            return [subjects.events_of_step(self.of[1], step, kind) for kind in self.kinds]
        return [subjects.events_like(pipeline=self.of[1], step=step, kind=kind) for kind in self.kinds]


class Watches:
    """All steps that wait for an event.

    Args:
        task_group: where they look back.
        decide: puts a decision about a run into the log.
        signals_after: sequence of the newest signal when this begins, read before the first watch.
    """

    def __init__(
        self, bus: Bus, task_group: TaskGroup, decide: Callable[[Case, Decision], None], signals_after: int
    ) -> None:
        self._bus = bus
        self._task_group = task_group
        self._decide = decide
        self._signals_after = signals_after
        #: By run and step, steps by run, and by what they are found by.
        self._watches: dict[tuple[str, str], Watch] = {}
        self._steps: defaultdict[str, set[str]] = defaultdict(set)
        self._by_subject: defaultdict[tuple[str, str], dict[tuple[str, str], Watch]] = defaultdict(dict)
        #: How many wait for events of runs: while there is none the log's records pass by.
        self.of_log = 0
        #: The record that was read last, and what was read of it.
        self._newest: tuple[Record | None, tuple[Any] | None] = (None, None)
        self._looking_back = anyio.CapacityLimiter(LOOKING_BACK_MAX)

    async def run(self) -> None:
        """Follow the signals until cancelled."""
        subjects = [self._bus.subjects.all_signals]
        async with self._bus.signals.follow(subjects, after=self._signals_after) as feed:
            async for batch in feed:
                for i, record in enumerate(batch):
                    self._see(("signal", self._bus.subjects.signal_of(record.subject)), record)
                    if i % TURN == TURN - 1:
                        await anyio.lowlevel.checkpoint()

    def see(self, record: Record, subject: EventSubject) -> None:
        """Look at a record of the log."""
        self._see(("run", subject.run), record)
        self._see(("pipeline", subject.pipeline), record)

    def begin(self, case: Case, command: Await) -> None:
        """Watch for what a step waits for; nothing happens if that is done already."""
        spec = case.run.spec(command.step)
        key = (case.run.id, command.step)
        if spec.wait is None or not spec.wait.listens or key in self._watches:
            return
        watch = self._watches[key] = Watch(case, command.step)
        self._steps[case.run.id].add(command.step)
        self._by_subject[watch.of][key] = watch
        self.of_log += not watch.of_signal
        self._task_group.start_soon(self._look_back, watch)

    def step_ended(self, run: str, step: str) -> None:
        watch = self._watches.pop((run, step), None)
        if watch is None:
            return
        self.of_log -= not watch.of_signal
        self._steps[run].discard(step)
        if not self._steps[run]:
            del self._steps[run]
        found = self._by_subject[watch.of]
        found.pop((run, step), None)
        if not found:
            del self._by_subject[watch.of]

    def run_ended(self, run: str) -> None:
        for step in list(self._steps.get(run, ())):
            self.step_ended(run, step)

    def refused(self, case: Case, event: StepReceived) -> None:
        """Take note that something else has the place in the log that this was to have."""
        self._task_group.start_soon(self._again, case, event)

    def _see(self, of: tuple[str, str], record: Record) -> None:
        watches = self._by_subject.get(of)
        for watch in list(watches.values()) if watches else ():
            # The first is kept, and what comes after it need not be read.
            if watch.value is None and watch.held is None:
                read = self._read(watch, record)
                found = watch.given(record, *read) if read is not None else None
                if found is not None and watch.looked_back:
                    self._give(watch, found)
                else:
                    watch.held = found

    def _read(self, watch: Watch, record: Record) -> tuple[Any] | None:
        """Read a signal or a record of the log, once for all that look at it; None if it cannot be read."""
        if self._newest[0] is not record:
            read: tuple[Any] | None = None
            if watch.of_signal:
                try:
                    read = (decode_signal(record.payload),)
                except RemoteProtocolError as error:
                    log.warning("signal_ignored", sequence=record.sequence, name=watch.of[1], reason=str(error))
            elif (event := run_event(record, self._bus.subjects)) is not None:
                read = (event,)
            self._newest = (record, read)
        return self._newest[1]

    async def _look_back(self, watch: Watch) -> None:
        """Look for what came before the watch was there."""
        async with self._looking_back:
            if not watch.waits:
                return
            found = await self._missed(watch)
        watch.looked_back = True
        found = found or watch.held
        if found is not None:
            self._give(watch, found)

    async def _missed(self, watch: Watch) -> tuple[Any] | None:
        source = self._bus.signals if watch.of_signal else self._bus
        last = await source.last_sequence()
        since_s = None if watch.since_s is None else watch.since_s - ROUNDING_S
        replay: Any = source.replay(watch.subjects(self._bus), up_to=last, since_s=since_s)
        # Closed here, where it is left early: the garbage collector would do it in another task.
        async with aclosing(replay):
            async for batch in replay:
                for i, record in enumerate(batch):
                    read = self._read(watch, record)
                    found = watch.given(record, *read) if read is not None else None
                    if found is not None:
                        return found
                    if i % TURN == TURN - 1:
                        await anyio.lowlevel.checkpoint()
        return None

    def _give(self, watch: Watch, found: tuple[Any]) -> None:
        if not watch.waits:
            return
        watch.value = found
        try:
            self._decide(watch.case, StepReceived(step=watch.step, value=found[0]))
        except EvpipeError as error:
            failure = Failure(message=f"the event that it waited for cannot be kept: {error}")
            attempt = watch.case.run.steps[watch.step].attempt
            failed = StepFailed(step=watch.step, attempt=attempt, reason=Reason.OUTPUT, failure=failure)
            self._decide(watch.case, failed)

    async def _again(self, case: Case, event: StepReceived) -> None:
        await anyio.sleep(AGAIN_S)
        watch = self._watches.get((case.run.id, event.step))
        if watch is not None and watch.case is case and not case.broken and watch.waits:
            self._decide(case, event)
