"""The runs that a controller leads: records of the log in, messages to the bus out.

    record ─▶ Desk.fold ─▶ Run.step ─▶ commands ─▶ launch / decision / timer / stop signal

Everything here is synchronous and hands messages to the bus without waiting, except one thing: a run's
graph is fetched once, by its digest, and until it is here the run's records wait in their order while
other runs go on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgpack
import structlog
from anyio.abc import TaskGroup

from evpipe.bus.protocol import Bus, Outcome, Record, Refused
from evpipe.bus.raised import log_raised
from evpipe.client.graphs import fetch_graph
from evpipe.controller.case import Case
from evpipe.controller.children import Children
from evpipe.controller.chores import Chores
from evpipe.controller.dispatch import Lane
from evpipe.controller.launches import Launches
from evpipe.controller.timers import Timers
from evpipe.controller.watches import Watches
from evpipe.core.commands import Await, CancelRun, Command, Decide, Launch, Quarantine, StopAttempt, SubmitRun, WakeAt
from evpipe.core.events import (
    CancelRequested,
    Decision,
    Due,
    Event,
    Finished,
    StepCached,
    StepCancelled,
    StepFailed,
    StepReceived,
    StepRetried,
    StepSkipped,
    Submitted,
)
from evpipe.core.graph import Graph
from evpipe.core.lineage import Parent, check_depth, check_parent
from evpipe.core.machine import Run
from evpipe.core.mapping import base_of
from evpipe.core.names import SEPARATOR
from evpipe.core.parameters import check_parameters
from evpipe.core.states import Reason
from evpipe.errors import RemoteProtocolError, UsageError
from evpipe.wire.holds import encode_hold
from evpipe.wire.messages import (
    LaunchEncoder,
    Submission,
    decode_event,
    decode_submission,
    encode_event,
)
from evpipe.wire.registry import RunEntry
from evpipe.wire.subjects import PROGRESS, EventSubject

log = structlog.get_logger(__name__)

#: The records of a run, in order, with their parsed subjects.
LiveRun: TypeAlias = list[tuple[Record, EventSubject]]

GRAPHS_KEPT: Final = 64
#: Commands carried out before others get a turn on the loop.
TURN: Final = 256
#: More commands than this of one event are carried out in turns with everything else.
MANY: Final = 1_024
ENDED_KEPT: Final = 100_000
#: Outputs over this size are counted.
LARGE_OUTPUT_BYTES: Final = 2 * 1024
#: Pause before a refused `due` is looked at again: by then the log has shown what took its place.
DUE_AGAIN_S: Final = 0.5

#: What is on its way to a subject, by its kind.
_DECISIONS: Final[dict[str, type[Decision]]] = {
    "finished": Finished,
    "skipped": StepSkipped,
    "cancelled": StepCancelled,
    "retry": StepRetried,
    "failed": StepFailed,
    "cancel-requested": CancelRequested,
}


class Desk:
    """Folds runs and carries their commands out.

    Args:
        bus: where messages go.
        task_group: where graphs are fetched.
        chores: what is told about runs and their ends.
        now_s: the bus's clock at the start; later it is the newest record's.
        signals_after: sequence of the newest signal at the start.
    """

    def __init__(self, bus: Bus, task_group: TaskGroup, chores: Chores, now_s: float, signals_after: int) -> None:
        self.cases: dict[str, Case] = {}
        self.timers = Timers(self._due)
        self._bus = bus
        self._subjects = bus.subjects
        self._task_group = task_group
        self._chores = chores
        self._now_s = now_s
        self._clock_at = (now_s, anyio.current_time())
        self.watches = Watches(bus, task_group, self._decide, signals_after)
        self._children = Children(bus, task_group, self._append)
        self._launches = Launches(
            bus,
            task_group,
            self.cases,
            submit=self._children.submit,
            decide=self._decide,
            now_s=lambda: self._now_s,
            clock_s=self._bus_clock_s,
        )
        self._graphs: OrderedDict[str, Graph] = OrderedDict()
        #: Another may lead by now: nothing is begun here any more.
        self._closed = False
        #: Runs that ended lately: a second submit of one must not start it again.
        self._ended: OrderedDict[str, None] = OrderedDict()

    def close(self) -> None:
        """Leave the runs to another: what it launches must not be launched from here as well, much later."""
        self._closed = True
        self._launches.close()
        self._children.close()

    async def run(self) -> None:
        """Do what is to be done by time, once all runs are here; until cancelled."""
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(self.timers.run)
            task_group.start_soon(self.watches.run)
            task_group.start_soon(self._launches.run)

    def _bus_clock_s(self) -> float:
        """The bus's clock between two records, too."""
        at_s, at = self._clock_at
        return max(self._now_s, at_s + anyio.current_time() - at)

    # ---- records in

    def fold(self, record: Record) -> None:
        """Apply the next record of the log and act on it."""
        if record.at_s > self._now_s:
            self._now_s = record.at_s
        try:
            subject = self._subjects.parse_event(record.subject)
        except RemoteProtocolError as error:
            log.warning("event_quarantined", sequence=record.sequence, reason=str(error))
            return
        if subject.kind == PROGRESS:
            return
        if self.watches.of_log:
            self.watches.see(record, subject)
        case = self.cases.get(subject.run)
        if case is not None and case.pipeline != subject.pipeline:
            # Its subject is not one that the run's decisions are expected on.
            log.warning("event_quarantined", run_id=case.run.id, sequence=record.sequence, reason="another pipeline")
        elif case is None:
            if subject.kind == "submitted" and subject.step is None and subject.run not in self._ended:
                case = self.cases[subject.run] = Case(subject.run, subject.pipeline)
                self._task_group.start_soon(self._open_live, case, record)
            # Anything else is about a run that has ended, or never was.
        else:
            self._take(case, record, subject)

    def _take(self, case: Case, record: Record, subject: EventSubject) -> None:
        if case.waiting is not None:
            case.waiting.append((record, subject))
        else:
            self._apply(case, record, subject)

    async def adopt(self, records: LiveRun) -> None:
        """Take over a run from all its records so far: fold them silently, then do what is outstanding."""
        subject = records[0][1]
        case = self.cases[subject.run] = Case(subject.run, subject.pipeline)
        case.waiting = None
        case.sequence = records[0][0].sequence
        self._step(case, await self._submitted(case, records[0][0]))
        for i, (record, of) in enumerate(records[1:]):
            self._apply(case, record, of, silent=True)
            if i % TURN == TURN - 1:
                await anyio.lowlevel.checkpoint()
        if case.run.ended:
            self._close(case)
        elif not case.broken:
            self._launches.seize(case)
            await self._carry_out_in_turns(case, case.run.outstanding())
            self._show(case)

    async def _open_live(self, case: Case, record: Record) -> None:
        submitted = await self._submitted(case, record)
        case.sequence = record.sequence
        commands = self._step(case, submitted)
        await self._carry_out_in_turns(case, commands)
        self._show(case)
        self._resume(case)

    async def _carry_out_in_turns(self, case: Case, commands: Sequence[Command]) -> None:
        """Carry out many commands: the first launches leave while the rest is still being encoded."""
        for i in range(0, len(commands), TURN):
            self._carry_out(case, commands[i : i + TURN])
            await anyio.lowlevel.checkpoint()

    async def _carry_out_many(self, case: Case, commands: Sequence[Command]) -> None:
        await self._carry_out_in_turns(case, commands)
        self._resume(case)

    def _resume(self, case: Case) -> None:
        """Go on with the records that have come meanwhile."""
        waiting, case.waiting = case.waiting or [], None
        for record, subject in waiting:
            # One of them may make so much to do that the rest has to wait again.
            self._take(case, record, subject)

    def _apply(self, case: Case, record: Record, subject: EventSubject, *, silent: bool = False) -> None:
        if case.broken:
            return
        case.sequence = record.sequence
        if subject.kind not in ("succeeded", "started"):
            case.last[subject.step or "", subject.kind] = record.sequence
        elif len(record.payload) > LARGE_OUTPUT_BYTES and subject.step is not None:
            case.sizes[subject.step] = len(record.payload)
            if SEPARATOR in subject.step:
                # And of the list of all.
                base = base_of(subject.step)
                case.sizes[base] = case.sizes.get(base, 0) + len(record.payload)
        pending = self._pending(case, subject)
        commands: Sequence[Command] = ()
        try:
            event = decode_event(subject, record.payload, record.at_s)
        except RemoteProtocolError as error:
            log.warning("event_quarantined", run_id=case.run.id, sequence=record.sequence, reason=str(error))
            event = None
        if event is not None:
            commands = self._step(case, event)
        if silent:
            return
        if pending is not None and self._pending(case, subject) is pending:
            # Something else took the place in the log that this decision was to have: it was refused.
            self._decide(case, pending)
        if event is None:
            return
        lane: Lane | None = None
        if subject.step is not None and (state := case.run.steps.get(subject.step)) is not None:
            if state.ended:
                self.watches.step_ended(case.run.id, subject.step)
            again = bool(commands) and subject.kind == "failed"
            lane = self._launches.moved(case, subject.step, state, again=again)
        if isinstance(event, CancelRequested):
            # A launch that has not left must not leave any more: its attempt is about to be ended by decree.
            self._launches.hold_back(case)
            # Finalisers run all the same.
            finalisers = (found for found in case.run.outstanding() if isinstance(found, (Launch, SubmitRun)))
            commands = (*commands, *finalisers)
        if len(commands) > MANY:
            # Others get their turns meanwhile: the lease has to be renewed.
            case.waiting = []
            self._task_group.start_soon(self._carry_out_many, case, commands)
        else:
            self._carry_out(case, commands)
        if case.run.status != case.shown:
            self._show(case)
        if case.run.ended:
            self._close(case)
        if lane is not None:
            # After what the event itself made ready: it waits for its turn like the rest.
            self._launches.serve(lane)

    def _pending(self, case: Case, subject: EventSubject) -> Decision | None:
        """Give the decision that is on its way to this subject."""
        kind = _DECISIONS.get(subject.kind)
        return case.run.decisions.get((subject.step or "", kind)) if kind is not None else None

    def _step(self, case: Case, event: Event) -> tuple[Command, ...]:
        try:
            return case.run.step(event)
        except Exception as error:  # noqa: BLE001 - logged
            # A bug. It stops this run, visibly, and no other.
            case.broken = True
            log_raised(log, "run_broken", error, run_id=case.run.id, sequence=case.sequence)
            return ()

    async def _submitted(self, case: Case, record: Record) -> Submitted:
        """Make the run's first event: fetch its graph and check what the submitter may not have checked."""
        parent: Parent | None = None
        try:
            submission = case.submission = decode_submission(record.payload)
            parent = check_parent(submission.parent, case.run.id)
            check_depth(parent, case.pipeline)
            case.queue, case.source, case.facts = submission.queue, submission.source, submission.facts
            case.no_cache, case.refresh = submission.no_cache, frozenset(submission.refresh)
            graph = await self._graph(case, submission)
            case.encoder = LaunchEncoder(case.pipeline, case.source)
            case.priority = graph.priority if submission.priority is None else submission.priority
            parameters = check_parameters(graph.parameters, submission.parameters, of=graph.pipeline)
        except (UsageError, RemoteProtocolError) as error:
            log.info("run_rejected", run_id=case.run.id, reason=str(error))
            return Submitted(at_s=record.at_s, graph=None, parameters={}, rejection=str(error), parent=parent)
        return Submitted(at_s=record.at_s, graph=graph, parameters=parameters, parent=parent)

    async def _graph(self, case: Case, submission: Submission) -> Graph:
        graph = self._graphs.get(submission.graph)
        if graph is None:
            graph = self._graphs[submission.graph] = await fetch_graph(self._bus, submission.graph)
            if len(self._graphs) > GRAPHS_KEPT:
                self._graphs.popitem(last=False)
        else:
            self._graphs.move_to_end(submission.graph)
        if graph.pipeline != case.pipeline:
            raise UsageError(f"submitted as a run of {case.pipeline!r}, but its graph is that of {graph.pipeline!r}")
        return graph

    # ---- commands out

    def _carry_out(self, case: Case, commands: Iterable[Command]) -> None:
        stops: list[tuple[str, str, int]] = []
        for command in commands:
            match command:
                case Launch() | SubmitRun():
                    self._launches.begin(case, command)
                case CancelRun():
                    self._task_group.start_soon(self._children.cancel, case, command)
                case Decide():
                    self._decide(case, command.event)
                case WakeAt():
                    self.timers.add(command.at_s - self._bus_clock_s(), case.run.id, command.step, command.attempt)
                case Await():
                    self.watches.begin(case, command)
                case StopAttempt():
                    stops.append((case.run.id, command.step, command.attempt))
                case Quarantine():
                    log.warning("event_quarantined", run_id=case.run.id, sequence=case.sequence, reason=command.reason)
        for i in range(0, len(stops), 1_000):
            self._bus.signal(self._subjects.stop, msgpack.packb(stops[i : i + 1_000]))

    def _decide(self, case: Case, event: Decision) -> None:
        if isinstance(event, Finished) and case.run.parent is not None:
            self._task_group.start_soon(self._children.finish, case, event)
        else:
            self._append(case, event)

    def _append(self, case: Case, event: Decision) -> None:
        step, kind, payload = encode_event(event)
        subject = self._subjects.event(case.pipeline, case.run.id, step, kind)

        def decided(outcome: Outcome) -> None:
            if outcome is Refused.SEQUENCE:
                # Somebody decided before: the same, since a decision is a function of the log. It comes by the log.
                log.debug("decision_was_there", subject=subject)
                if isinstance(event, Due):
                    # Unless it was not that: then the wait is still open, and it is due as before.
                    self.timers.add(DUE_AGAIN_S, case.run.id, event.step, event.attempt)
                elif isinstance(event, StepReceived) and not self._closed:
                    self.watches.refused(case, event)
                elif isinstance(event, StepCached) and not self._closed and self.cases.get(case.run.id) is case:
                    # Likewise: then the step is still to be launched, or cached.
                    self._task_group.start_soon(self._look_up_again, case, event)

        self._bus.append(subject, payload, expected=case.last.get((step or "", kind), 0), done=decided)

    async def _look_up_again(self, case: Case, event: StepCached) -> None:
        await anyio.sleep(DUE_AGAIN_S)
        gone = self.cases.get(case.run.id) is not case or case.broken
        if gone or not case.run.may_launch(event.step, event.attempt):
            # Of very many that were refused at once, hardly one is still to be launched.
            return
        for command in case.run.outstanding():
            if isinstance(command, Launch) and (command.step, command.attempt) == (event.step, event.attempt):
                self._launches.begin(case, command)

    def abandon(self, queue: str, message: str) -> None:
        """See `Controller.abandon`."""
        for case in list(self.cases.values()):
            run = case.run
            if case.queue != queue or run.cancel is None or case.broken or case.waiting is not None:
                continue
            for name, state in run.steps.items():
                # A step that is a run ends with that, which is on the same queue; a mapped one with its elements.
                if state.ended or name in run.expansions or run.spec(name).child is not None:
                    continue
                event = StepCancelled(step=name, attempt=state.attempt, reason=Reason.REQUEST, message=message)
                self._decide(case, event)

    def _due(self, run_id: str, step: str | None, attempt: int) -> None:
        case = self.cases.get(run_id)
        if case is None or case.broken:
            return
        if case.waiting is not None:
            # Not all that has happened is folded; then it is looked at again.
            self.timers.add(DUE_AGAIN_S, run_id, step, attempt)
            return
        if step is not None:
            state = case.run.steps[step]
            if state.due_at_s is None or state.attempt != attempt:
                return
        self._decide(case, Due(step=step, attempt=attempt))

    # ---- what others see

    def _show(self, case: Case) -> None:
        run = case.run
        case.shown = run.status
        self._chores.show(
            RunEntry(
                run=run.id,
                pipeline=case.pipeline,
                status=run.status,
                submitted_at_s=run.submitted_at_s or 0.0,
                ended_at_s=run.at_s if run.ended else None,
                message=run.message,
                parent=run.parent.run if run.parent is not None else "",
                root=run.parent.root if run.parent is not None else "",
                sequence=case.sequence,
            )
        )

    def held_answer(self, subject: str, _: bytes) -> bytes | None:
        """Answer why a step is not launched; None if its run is none of this controller's."""
        run, step = subject.split(".")[-2:]
        case = self.cases.get(run)
        return None if case is None else encode_hold(self._launches.explain(case, step))

    def _close(self, case: Case) -> None:
        run = case.run
        del self.cases[run.id]
        self._launches.run_ended(case)
        self.watches.run_ended(run.id)
        self._ended[run.id] = None
        if len(self._ended) > ENDED_KEPT:
            self._ended.popitem(last=False)
        self._chores.drop_launches(run.id)
        log.info(
            "run_finished",
            run_id=run.id,
            pipeline=case.pipeline,
            status=run.status.value,
            steps=len(run.steps),
            duration_s=round(run.at_s - (run.submitted_at_s or run.at_s), 3),
            **({"reason": run.reason.value, "message": run.message} if run.reason else {}),
        )


def end_of_run(record: Record, subject: EventSubject) -> Finished | None:
    """Give the event if it ends its run for every reader: a `finished` that can be read."""
    if subject.kind != "finished" or subject.step is not None:
        return None
    try:
        event = decode_event(subject, record.payload, record.at_s)
    except RemoteProtocolError:
        return None
    return event if isinstance(event, Finished) and Run.is_end(event) else None
