"""What the runs that are led wait for: signals, and events of other runs.

    Await ─▶ watch ─▶ look back (from where the wait began) ─┐
                      live: signals, records of the log ─────┴─▶ first that matches ─▶ StepReceived into the log

A watch is registered before it is looked back for, so nothing falls between what is read and what comes. What comes
meanwhile is held until that is done: the first in the stream counts, wherever it was seen. Two controllers that see the
same decide the same, and one of them is refused; whoever takes over looks back again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import anyio
import anyio.lowlevel
import structlog
from anyio.abc import TaskGroup

from evpipe.bus.protocol import Bus, Record
from evpipe.client.events import run_event
from evpipe.core.commands import Await
from evpipe.core.events import Decision, Failure, StepFailed, StepReceived
from evpipe.core.names import from_people
from evpipe.core.states import Reason, StepStatus
from evpipe.core.waits import WaitKind, matches
from evpipe.errors import EvpipeError, RemoteProtocolError
from evpipe.wire.signals import decode_signal
from evpipe.wire.subjects import RUN, EventSubject

if TYPE_CHECKING:
    from evpipe.controller.case import Case

log = structlog.get_logger(__name__)

#: Watches that look back at the same time: each reads a stream.
LOOKING_BACK_MAX: Final = 8
#: Signals and records looked at before others get a turn on the loop.
TURN: Final = 64
#: Pause before a decision that was refused is looked at again: by then the log has shown what took its place.
AGAIN_S: Final = 0.5
#: The server's moments are read as floats and asked for in microseconds.
ROUNDING_S: Final = 0.001


#: What a watch is found by: ("signal", name), or ("run" or "pipeline", which, step, kind).
Key: TypeAlias = tuple[str, ...]


class Watch:
    """One step that waits for an event."""

    __slots__ = ("case", "held", "keys", "looked_back", "match", "of_signal", "since_s", "step", "value")

    def __init__(self, case: Case, step: str) -> None:
        spec, state = case.run.spec(step), case.run.steps[step]
        assert spec.wait is not None
        arguments: Mapping[str, Any] = case.run.arguments_of(step)
        self.case = case
        self.step = step
        self.of_signal = spec.wait.kind is WaitKind.SIGNAL
        self.match: Mapping[str, Any] = arguments.get("match") or {}
        #: What is older does not count; None: of a certain run all does.
        self.since_s: float | None = case.run.submitted_at_s if spec.wait.since_submit else state.started_at_s
        if self.of_signal:
            self.keys: list[Key] = [("signal", str(arguments["name"]))]
        else:
            what = "run" if "run" in arguments else "pipeline"
            # What came from the cache has succeeded.
            kinds = ("succeeded", "cached") if arguments["kind"] == "succeeded" else (str(arguments["kind"]),)
            of_step = from_people(str(arguments.get("step") or RUN))
            self.keys = [(what, str(arguments[what]), of_step, kind) for kind in kinds]
            if what == "run":
                self.since_s = None
        #: Whether all that came before it was registered has been looked at, and the first that came meanwhile.
        self.looked_back = False
        self.held: tuple[Any] | None = None
        #: What has come, while it is not in the log.
        self.value: tuple[Any] | None = None

    @property
    def waits(self) -> bool:
        """Whether the log still wants to know."""
        run = self.case.run
        state = run.steps.get(self.step)
        return state is not None and state.status is StepStatus.RUNNING and run.may_go_on(self.step) and not run.ended

    def takes(self, record: Record, payload: Any) -> bool:
        """Say whether this is what it waits for; it was found by one of its keys."""
        return (self.since_s is None or record.at_s >= self.since_s) and matches(self.match, payload)

    def subjects(self, bus: Bus) -> list[str]:
        """Give the subjects of what it may have missed."""
        subjects = bus.subjects
        if self.of_signal:
            return [subjects.signal(self.keys[0][1])]
        if self.keys[0][0] == "run":
            return [subjects.events_of_step(run, step, kind) for _, run, step, kind in self.keys]
        return [subjects.events_like(pipeline=of, step=step, kind=kind) for _, of, step, kind in self.keys]


class Shelf:
    """Watches of one key, found by what a payload has: of a thousand that wait for an order each, one is looked at."""

    def __init__(self, watches: Iterable[Watch] = ()) -> None:
        #: By a part of the payload, and its value.
        self._by_part: dict[str, dict[Any, set[Watch]]] = {}
        self._rest: set[Watch] = set()
        self.count = 0
        for watch in watches:
            self.add(watch)

    def add(self, watch: Watch) -> None:
        part = _part_of(watch.match)
        shelf = self._rest if part is None else self._by_part.setdefault(part[0], {}).setdefault(part[1], set())
        self.count += watch not in shelf
        shelf.add(watch)

    def remove(self, watch: Watch) -> None:
        part = _part_of(watch.match)
        if part is None:
            self.count -= watch in self._rest
            self._rest.discard(watch)
            return
        values = self._by_part.get(part[0], {})
        shelf = values.get(part[1], set())
        self.count -= watch in shelf
        shelf.discard(watch)
        if not shelf:
            values.pop(part[1], None)

    def candidates(self, payload: Any) -> list[Watch]:
        """Give those that may wait for this."""
        found = list(self._rest)
        if isinstance(payload, dict):
            for name, values in self._by_part.items():
                token = _token(payload.get(name))
                if name in payload and token is not None:
                    found += values.get(token, ())
        return found


def _part_of(match: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Choose what a watch is found by: the first value that is no list and no dict."""
    for name, value in match.items():
        token = _token(value)
        if token is not None:
            return name, token
    return None


def _token(value: Any) -> tuple[bool, Any] | None:
    """Give what equal values have in common; a true is no 1."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return isinstance(value, bool), value
    return None


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
        #: By run and step, steps by run, and by their keys.
        self._watches: dict[tuple[str, str], Watch] = {}
        self._steps: defaultdict[str, set[str]] = defaultdict(set)
        self._shelves: dict[Key, Shelf] = {}
        #: How many wait for events of runs: while there is none the log's records pass by.
        self.of_log = 0
        #: Those that are still to look back, by their first key, one task each: all that have come look back together.
        self._to_look_back: dict[Key, list[Watch]] = {}
        self._looking_back = anyio.CapacityLimiter(LOOKING_BACK_MAX)

    async def run(self) -> None:
        """Follow the signals until cancelled."""
        subjects = [self._bus.subjects.all_signals]
        async with self._bus.signals.follow(subjects, after=self._signals_after) as feed:
            async for batch in feed:
                for i, record in enumerate(batch):
                    self._see([("signal", self._bus.subjects.signal_of(record.subject))], record)
                    if i % TURN == TURN - 1:
                        await anyio.lowlevel.checkpoint()

    def see(self, record: Record, subject: EventSubject) -> None:
        """Look at a record of the log."""
        step = subject.step or RUN
        of_run, of_pipeline = ("run", subject.run), ("pipeline", subject.pipeline)
        self._see([(*of_run, step, subject.kind), (*of_pipeline, step, subject.kind)], record)

    def begin(self, case: Case, command: Await) -> None:
        """Watch for what a step waits for; nothing happens if that is done already."""
        spec = case.run.spec(command.step)
        key = (case.run.id, command.step)
        if spec.wait is None or not spec.wait.listens or key in self._watches:
            return
        watch = self._watches[key] = Watch(case, command.step)
        self._steps[case.run.id].add(command.step)
        for of in watch.keys:
            self._shelves.setdefault(of, Shelf()).add(watch)
        self.of_log += not watch.of_signal
        together = watch.keys[0]
        if together in self._to_look_back:
            self._to_look_back[together].append(watch)
        else:
            self._to_look_back[together] = [watch]
            self._task_group.start_soon(self._look_back, together)

    def step_ended(self, run: str, step: str) -> None:
        watch = self._watches.pop((run, step), None)
        if watch is None:
            return
        self.of_log -= not watch.of_signal
        self._steps[run].discard(step)
        if not self._steps[run]:
            del self._steps[run]
        for of in watch.keys:
            shelf = self._shelves[of]
            shelf.remove(watch)
            if not shelf.count:
                del self._shelves[of]

    def run_ended(self, run: str) -> None:
        for step in list(self._steps.get(run, ())):
            self.step_ended(run, step)

    def refused(self, case: Case, event: StepReceived) -> None:
        """Take note that something else has the place in the log that this was to have."""
        self._task_group.start_soon(self._again, case, event)

    def _see(self, keys: Iterable[Key], record: Record) -> None:
        """Look at what comes, for those that are registered."""
        for of in keys:
            shelf = self._shelves.get(of)
            read = self._read(of, record) if shelf is not None else None
            if shelf is None or read is None:
                continue
            for watch in shelf.candidates(read[0]):
                # The first is kept, and what comes after it need not be looked at.
                if watch.value is None and watch.held is None and watch.takes(record, read[0]):
                    if watch.looked_back:
                        self._give(watch, read)
                    else:
                        watch.held = read

    def _read(self, of: Key, record: Record) -> tuple[Any] | None:
        """Give what a record is to whoever waits for it; None if it cannot be read."""
        if of[0] == "signal":
            try:
                return (decode_signal(record.payload),)
            except RemoteProtocolError as error:
                log.warning("signal_ignored", sequence=record.sequence, name=of[1], reason=str(error))
                return None
        event = run_event(record, self._bus.subjects)
        if event is None:
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

    async def _look_back(self, together: Key) -> None:
        """Look for what came before the watches of a key were there, until none is left to look back."""
        try:
            while self._to_look_back[together]:
                async with self._looking_back:
                    watches = [watch for watch in self._to_look_back[together] if watch.waits]
                    self._to_look_back[together] = []
                    found = await self._missed(together, watches)
                for watch in watches:
                    watch.looked_back = True
                    first = found.get(watch) or watch.held
                    if first is not None:
                        self._give(watch, first)
        finally:
            del self._to_look_back[together]

    async def _missed(self, together: Key, watches: list[Watch]) -> dict[Watch, tuple[Any]]:
        """Give the first that each of these watches, of one key, has missed."""
        found: dict[Watch, tuple[Any]] = {}
        if not watches:
            return found
        source = self._bus.signals if watches[0].of_signal else self._bus
        last = await source.last_sequence()
        since_s = min((watch.since_s - ROUNDING_S for watch in watches if watch.since_s is not None), default=None)
        shelf = Shelf(watches)
        replay: Any = source.replay(watches[0].subjects(self._bus), up_to=last, since_s=since_s)
        # Closed here, where it is left early: the garbage collector would do it in another task.
        async with aclosing(replay):
            async for batch in replay:
                for i, record in enumerate(batch):
                    if i % TURN == TURN - 1:
                        await anyio.lowlevel.checkpoint()
                    read = self._read(together, record)
                    for watch in shelf.candidates(read[0]) if read is not None else ():
                        if read is not None and watch.takes(record, read[0]):
                            found[watch] = read
                            shelf.remove(watch)
                if not shelf.count:
                    break
        return found

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
