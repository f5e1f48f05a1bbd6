"""Debug mode: the same fold, no bus: steps are plain calls in this thread, in topological order.

Breakpoints work and a traceback is the step's own. Values still go through the same encode and decode as
on the bus, so a step cannot see what another did to an argument, and results and states are those of the
other modes; only time-outs and the run's deadline are noticed when a call returns. Ctrl-C ends a call.
"""

from __future__ import annotations

import codecs
import heapq
import math
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.from_thread
import structlog
from anyio.lowlevel import EventLoopToken, current_token

from evpipe.bus.memory import MemoryBus, MemoryServer
from evpipe.bus.results import ResultStore, Use, kept_results
from evpipe.client.cache import CacheView
from evpipe.client.client import check_refresh, new_run_id
from evpipe.client.command_files import command_files, commands_of
from evpipe.client.family import Family
from evpipe.client.fingerprints import components_of, facts_of_run
from evpipe.client.lists import BeginT, OpenLists
from evpipe.client.logs import LogEntry
from evpipe.client.loops import outside_of_any_loop
from evpipe.client.waiting import WaitingStep, this_user
from evpipe.core.children import end_of_step
from evpipe.core.commands import Await, Decide, Launch, SubmitRun, WakeAt
from evpipe.core.events import (
    CancelCause,
    CancelRequested,
    Decision,
    Due,
    Event,
    Failure,
    Finished,
    Origin,
    StepApproved,
    StepCached,
    StepFailed,
    StepReceived,
    StepSkipped,
    StepStarted,
    StepSucceeded,
    Submitted,
)
from evpipe.core.fingerprint import NO_FACTS
from evpipe.core.graph import Graph, Step, steps_in
from evpipe.core.lineage import check_depth, child_run_id
from evpipe.core.machine import Run
from evpipe.core.mapping import base_of
from evpipe.core.names import for_people
from evpipe.core.notes import Notes
from evpipe.core.parameters import check_parameters
from evpipe.core.states import Reason, RunIf
from evpipe.core.waits import WaitKind, answer_problem
from evpipe.errors import EvpipeError, RemoteProtocolError, UsageError
from evpipe.hosting.answers import BY, Answers, ask, can_ask, nobody_answers
from evpipe.hosting.display import Display
from evpipe.hosting.interrupts import CANCELLING, INTERRUPTED, Interrupts
from evpipe.hosting.rates import keep_rates
from evpipe.sdk.context import entered
from evpipe.sdk.pipeline import Built
from evpipe.sdk.result import RunResult
from evpipe.wire.cache import (
    CacheEntry,
    Expired,
    Hit,
    Marker,
    components_map,
    decode_entry,
    encode_entry,
    encode_hit,
    hit_key,
)
from evpipe.wire.children import (
    encode_child,
    encode_end_of_step,
    refusal_of_child,
    submission_of_child,
    unstorable,
)
from evpipe.wire.graphs import decode_graph, encode_graph, graph_digest
from evpipe.wire.messages import (
    LaunchOrder,
    Submission,
    decode_event,
    decode_launch,
    decode_submission,
    encode_event,
    encode_launch,
    encode_submission,
    order_of,
    result_in,
)
from evpipe.wire.notes import with_notes
from evpipe.wire.spool import Shelf, Spool, TemporaryFolder
from evpipe.wire.storing import artifacts_of, loaded
from evpipe.wire.subjects import DEFAULT_PRIORITY, EventSubject, LaunchSubject
from evpipe.worker.attempt_files import AttemptFiles
from evpipe.worker.code import find_function
from evpipe.worker.commands.conclusion import conclude_command
from evpipe.worker.commands.program import Place
from evpipe.worker.conclusion import Conclusion, conclude_error, conclude_failure, conclude_value
from evpipe.worker.failures import timeout_failure
from evpipe.worker.notes import Kept
from evpipe.worker.recording import AttemptRecorder

log = structlog.get_logger(__name__)


def run_debug(
    built: Built,
    display: Display | None = None,
    *,
    no_cache: bool = False,
    refresh: bool | Sequence[str] = False,
    answers: Mapping[str, Any] | None = None,
) -> RunResult[Any]:
    """Run a built pipeline in this thread.

    Args:
        display: is told of the run; None: nobody is.
        no_cache: as of `run`.
        refresh: as of `run`.
        answers: as of `run`; an approval that has none is asked for at the terminal, if there is one.

    Raises:
        UsageError: if a step waits for what nobody can give it.
        KeyboardInterrupt: after Ctrl-C, when the run has been cancelled and has ended; after another one at once.
    """
    prepared = Answers(answers, built.graph)
    refreshed = check_refresh(refresh, built.graph, no_cache=no_cache)
    if display is not None:
        display.bus("none, plain calls in this thread (mode debug)")
    store = _Store(built.graph, display)
    facts = None if no_cache else facts_of_run(built.graph)
    data = encode_graph(built.graph, store.writer, store.graphs)
    digest = graph_digest(data)
    store.graphs[digest] = data
    submission = Submission(
        graph=digest, parameters=built.parameters, facts=facts or NO_FACTS, no_cache=no_cache, refresh=refreshed
    )
    payload = encode_submission(submission, store.writer)
    with store.interrupts:
        run = _DebugRun(new_run_id(), decode_submission(payload), built.graph.pipeline, store, prepared).to_end()
    if display is not None:
        family = Family(run, store.below)
        display.show(family)
        display.finished(family)
        if facts is not None and not store.interrupts.asked:
            outside_of_any_loop(lambda: anyio.run(store.say_what_was_cached, display, run, payload))
    if store.interrupts.asked:
        raise KeyboardInterrupt
    return store.result_of(run)


class _Store:
    """What a debug run and the runs that its steps are have in common: what they have stored, and computed."""

    def __init__(self, graph: Graph, display: Display | None) -> None:
        self.display = display
        self.interrupts = Interrupts()
        # For as long as its values may be asked for.
        self.base = TemporaryFolder("debug")
        #: Encoded graphs, by digest.
        self.graphs: dict[str, bytes] = {}
        self._results: ResultStore | None = None
        self._use: Use | None = None
        self.lists = OpenLists()
        self._said_so = False
        #: What attempts recorded, by run, step and attempt: their end may be a cancel, which does not say it.
        self.notes: dict[tuple[str, str, int], Notes] = {}
        #: By id, all runs that have begun.
        self.runs: dict[str, Run] = {}
        #: By the path of the step, those that steps are; of one that was retried the last.
        self.below: dict[str, Run] = {}
        with_pickle = any(step.pickle for step in steps_in(graph))
        self.writer = self.spool(with_pickle)
        self.reader = self.shelf(with_pickle)
        #: Where the files of its commands are, as of when it began; "": they have none.
        self.commands = self._put(command_files(commands_of(graph)))

    def asked_to_end(self) -> CancelRequested | None:
        """Give what Ctrl-C asks for, if it has come."""
        if not self.interrupts.asked:
            return None
        if not self._said_so and self.display is not None:
            self.display.note(CANCELLING)
        self._said_so = True
        return CancelRequested(cause=CancelCause.REQUEST, message=INTERRUPTED)

    def spool(self, pickles: bool) -> Spool:
        return Spool(lambda: self.base.path, pickles=pickles)

    def shelf(self, pickles: bool) -> Shelf:
        return Shelf(self.find, lambda: Path(tempfile.mkdtemp(dir=self.base.path)), pickles=pickles)

    def find(self, digest: str) -> Path | None:
        """Give the file of an artifact that a step of the run gave, or the result of another that was taken."""
        file = self.base.path / digest
        return file if file.is_file() else None if self._use is None else self._use.file(digest)

    # ---- the cache

    @property
    def results(self) -> ResultStore:
        """Those of the user; where they cannot be kept, those of this run alone."""
        if self._results is None:
            self._results = kept_results(self._note) or ResultStore(self.base.path / "results", self._note)
        return self._results

    def cached(self, step: Step, fingerprint: str) -> tuple[StepSucceeded, Origin] | Expired | None:
        """Give the result of a step with this fingerprint, if all of it is there, or say that it is too old."""
        assert step.cache is not None, "only of cached steps"
        if self._use is None:
            self._use = Use(self.results)
        kept = self.results.get(fingerprint, self._use)
        if kept is None:
            return None
        try:
            entry = decode_entry(kept.value)
        except RemoteProtocolError:
            return None
        if isinstance(entry, Marker):
            return None
        if step.cache.ttl_s is not None and time.time() - kept.at_s > step.cache.ttl_s:
            return Expired(entry.run, kept.at_s)
        event = result_in(entry)
        return None if event is None else (event, entry.origin(kept.at_s))

    def keep(self, entry: CacheEntry) -> None:
        """Put a result into the cache."""
        self.results.put(entry.fingerprint, encode_entry(entry), self.find)

    async def say_what_was_cached(self, display: Display, run: Run, submitted: bytes) -> None:
        """Find it out as on a bus, of which there is as much as that needs."""
        server = MemoryServer(results=self.results)
        assert run.graph is not None, "a root run has one"
        server.append(server.subjects.event(run.graph.pipeline, run.id, None, "submitted"), submitted, None)
        server.object_files = {file.name: file for file in self.base.path.iterdir() if file.is_file()}
        async with MemoryBus(server) as bus:
            await display.cache(CacheView(bus), run)

    def _note(self, text: str) -> None:
        if self.display is not None:
            self.display.note(text)
        else:
            log.warning("results_not_kept", error=text)

    # ----

    def result_of(self, run: Run) -> RunResult[Any]:
        # The method holds this object, and so the folder, for as long as the result lives.
        return RunResult.of(run, self._opened, self._child, self._recorded)

    def filled(self, command: BeginT) -> BeginT:
        """Give a launch with the elements of lists that are its arguments."""
        while (closed := self.lists.closed(command.arguments)) is not None:
            file = self.base.path / closed.digest
            self.lists.open(closed, closed.data if closed.data is not None else file.read_bytes())
            command = self.lists.filled(command)
        return self.lists.filled(command)

    def folder(self) -> str:
        return tempfile.mkdtemp(dir=self.base.path)

    def _opened(self, value: Any) -> Any:
        return loaded(value, self.reader) if artifacts_of(value) else value

    def _child(self, run: str, _pipeline: str) -> RunResult[Any] | None:
        return self.result_of(self.runs[run]) if run in self.runs else None

    def _recorded(self, run: str, step: str, attempt: int) -> Notes | None:
        return self.notes.get((run, step, attempt))

    def _put(self, files: Mapping[str, bytes]) -> str:
        folder = self.base.path / "commands" if files else None
        for inside, content in files.items():
            assert folder is not None
            (folder / inside).parent.mkdir(parents=True, exist_ok=True)
            (folder / inside).write_bytes(content)
        return "" if folder is None else str(folder)


class _DebugRun:
    """One run: its fold.

    Args:
        submission: as it was encoded and decoded.
        pipeline: its graph's, if it can be read.
        answers: of its steps that wait.
        above: the run that this one is a step of.
    """

    def __init__(
        self,
        run_id: str,
        submission: Submission,
        pipeline: str,
        store: _Store,
        answers: Answers,
        above: _DebugRun | None = None,
    ) -> None:
        self.run = store.runs[run_id] = Run(run_id)
        self._submission = submission
        self._pipeline = pipeline
        self._store = store
        self._answers = answers
        self._above = above
        #: What is to be folded next; before it is empty nothing is called.
        self._events: deque[Event] = deque()
        #: What calls have given: it counts after all that came before they returned.
        self._results: deque[Event] = deque()
        self._ready: list[tuple[int, int, Launch | SubmitRun]] = []
        self._waits: list[tuple[float, int, WakeAt]] = []
        self._open_waits: deque[Await] = deque()
        self._deadline_s = math.inf
        self._count = 0
        self._told_to_end = False
        #: What the paths of its steps begin with.
        self._prefix = ""
        if above is not None and submission.parent is not None:
            path = above._prefix + for_people(submission.parent.step)
            store.below[path] = self.run
            self._prefix = f"{path}/"

    def to_end(self) -> Run:
        submitted = self._submitted()
        self._events.append(submitted)
        while not self.run.ended:
            self._look()
            if self._events:
                self._fold()
            elif self._results:
                self._events.append(self._results.popleft())
            elif self._open_waits and not self._ready:
                # A person is asked when all else is done.
                self._answer(self._open_waits.popleft().step)
            elif self._waits and (self._waits[0][0] <= time.time() or not self._ready):
                self._wait()
            else:
                command = heapq.heappop(self._ready)[2]
                state = self.run.steps[command.step]
                if not state.ended and state.attempt == command.attempt:
                    self._begin(command)
        return self.run

    def _look(self) -> None:
        """Take what has come from outside since the last look: Ctrl-C, or the end of the time that there is."""
        end = self._end_from_above()
        if end is not None and not self._told_to_end:
            self._told_to_end = True
            self._events.append(self._logged(end))
        if time.time() >= self._deadline_s:
            self._deadline_s = math.inf
            self._events.append(Due(at_s=time.time(), step=None))

    def _end_from_above(self) -> CancelRequested | None:
        """Give what ends this run from outside: for one that is a step, the end of the run around it."""
        if self._above is None:
            return self._store.asked_to_end()
        parent = self._submission.parent
        assert parent is not None, "of a run that is a step"
        self._above._look()
        while self._above._events:
            self._above._fold()
        asked = self._above.run.cancel
        if asked is None or self._above.run.spec(parent.step).run_if is RunIf.ALWAYS:
            return None
        return CancelRequested(cause=asked.cause, message=asked.message, by_parent=True)

    def _ends_by_cancel(self, step: str) -> bool:
        """Say whether a step ends when the run at the top is cancelled."""
        if self.run.spec(step).run_if is RunIf.ALWAYS:
            return False
        parent = self._submission.parent
        return self._above is None or parent is None or self._above._ends_by_cancel(parent.step)

    def _fold(self) -> None:
        """Fold the next event."""
        for command in self.run.step(self._events.popleft()):
            self._count += 1
            match command:
                case Await():
                    self._open_waits.append(command)
                case Launch() | SubmitRun():
                    assert self.run.graph is not None
                    # The furthest down first, as elsewhere: an element comes to the end of its chain.
                    depth = self.run.graph.depth[base_of(command.step)]
                    heapq.heappush(self._ready, (-depth, self._count, command))
                case Decide():
                    self._events.append(self._logged(command.event))
                case WakeAt(step=None):
                    self._deadline_s = command.at_s
                case WakeAt():
                    heapq.heappush(self._waits, (command.at_s, self._count, command))
                case _:
                    # What runs is over when this is folded, and nothing comes from outside that could be nonsense.
                    pass

    def _begin(self, command: Launch | SubmitRun) -> None:
        """Run an attempt to its end."""
        if isinstance(command, SubmitRun):
            self._results.append(self._child_run(command))
            return
        began_s = time.time()
        ends = self._ends_by_cancel(command.step)
        try:
            with self._store.interrupts.ending(ends):
                result = self._launched(command)
        except KeyboardInterrupt:
            if not self._store.interrupts.caught():
                raise
            if not ends:
                failure = Failure(message=INTERRUPTED)
                failed = StepFailed(step=command.step, attempt=command.attempt, failure=failure, started_at_s=began_s)
                self._results.append(self._logged(failed))
        else:
            if isinstance(result, StepCached):
                self._results.append(result)
                return
            if self._is_over_before_the_run(result, began_s):
                self._events.append(StepStarted(at_s=began_s, step=command.step, attempt=command.attempt))
                self._events.append(result)
                return
            self._results.append(result)
        self._events.append(StepStarted(at_s=began_s, step=command.step, attempt=command.attempt))

    def _is_over_before_the_run(self, result: Event, began_s: float) -> bool:
        """Say whether it was the attempt's time that was over first, of those that were over when a call returned."""
        if not isinstance(result, StepFailed) or result.reason is not Reason.TIMEOUT:
            return False
        timeout_s = self.run.spec(result.step).timeout_s
        return timeout_s is not None and began_s + timeout_s < self._first_deadline_s()

    def _first_deadline_s(self) -> float:
        above_s = math.inf if self._above is None else self._above._first_deadline_s()
        return min(self._deadline_s, above_s)

    def _wait(self) -> None:
        """Wait for the next moment at which something is due."""
        at_s, _, wake = self._waits[0]
        if at_s <= time.time():
            heapq.heappop(self._waits)
            self._events.append(Due(at_s=time.time(), step=wake.step, attempt=wake.attempt))
            return
        try:
            # Whether what waits goes on is seen after it: a finaliser waits again.
            with self._store.interrupts.ending(not self._store.interrupts.asked):
                time.sleep(max(0.0, min(at_s, self._deadline_s) - time.time()))
        except KeyboardInterrupt:
            if not self._store.interrupts.caught():
                raise

    def _answer(self, step: str) -> None:
        """Give an answer to a step that waits for a person or an event."""
        try:
            with self._store.interrupts.ending(self._ends_by_cancel(step)):
                found = self._answered(step)
        except KeyboardInterrupt:
            if not self._store.interrupts.caught():
                raise
            self._open_waits.append(Await(step, self.run.steps[step].attempt))
        else:
            self._results.extend(found)

    def _answered(self, step: str) -> list[Event]:
        """Give what comes of a wait for a person or an event: nothing, if only its time ends it."""
        if not self.run.waits_for(step) or not self.run.may_go_on(step):
            return []
        waiting = WaitingStep.of(self.run, step)
        if step in self._answers:
            answer, by = self._answers.of(waiting), BY
        elif waiting.kind == WaitKind.APPROVAL and can_ask():
            answer, by = ask(waiting), this_user()
        elif waiting.until is not None:
            return []
        else:
            raise nobody_answers(waiting, "debug", self._answers)
        if waiting.kind != WaitKind.APPROVAL:
            return [self._logged(StepReceived(step=step, value=answer))]
        wait = self.run.spec(step).wait
        problem = answer_problem(wait, answer) if wait is not None else None
        if problem:
            raise UsageError(f"answers: step {step!r}: {problem}")
        return [self._logged(StepApproved(step=step, answer=answer, by=by))]

    def _submitted(self) -> Submitted:
        submission = self._submission
        try:
            check_depth(submission.parent, self._pipeline)
            graph = decode_graph(self._store.graphs[submission.graph])
            parameters = check_parameters(graph.parameters, submission.parameters, of=graph.pipeline)
        except UsageError as error:
            rejection, parent = str(error), submission.parent
            return Submitted(at_s=time.time(), graph=None, parameters={}, rejection=rejection, parent=parent)
        return Submitted(at_s=time.time(), graph=graph, parameters=parameters, parent=submission.parent)

    def _child_run(self, command: SubmitRun) -> Event:
        """Run the run that a step is to its end; gives the end of the step."""
        command = self._store.filled(command)
        run, step, attempt = self.run, self.run.spec(command.step), command.attempt
        assert step.child is not None
        try:
            submission = submission_of_child(
                self._submission, step, run=run.id, pipeline=self._pipeline, name=command.step, attempt=attempt
            )
            payload = encode_child(
                submission, command.arguments, f"step {for_people(command.step)!r}", self._store.writer
            )
        except EvpipeError as error:
            return self._logged(refusal_of_child(command.step, attempt, error))
        child_id = child_run_id(run.id, command.step, attempt)
        answers = self._answers.inside(command.step)
        child = _DebugRun(
            child_id, decode_submission(payload), step.child.pipeline, self._store, answers, self
        ).to_end()
        end = Finished(status=child.status, reason=child.reason, message=child.message, value=child.value)
        try:
            kind, payload = encode_end_of_step(end_of_step(child, end), self._store.writer)
        except EvpipeError as error:
            return self._logged(unstorable(child, error))
        return self._read(command.step, Conclusion(kind, payload))

    def _launched(self, launch: Launch) -> Event:
        """Give what follows from a launch: what the cache says, or what the call gives."""
        launch = self._store.filled(launch)
        step = self.run.spec(launch.step)
        components = components_of(step, launch.arguments, self._submission.facts)
        if components is None:
            keep_rates(step.limits)
            return self._ended(launch, self._call(launch))
        fingerprint = components.fingerprint()
        refresh = self._submission.refresh
        refreshed = base_of(launch.step) in refresh or "*" in refresh
        found = None if refreshed else self._store.cached(step, fingerprint)
        if isinstance(found, tuple):
            event, origin = found
            hit = Hit(fingerprint, self._pipeline, self.run.id, launch.step)
            self._store.results.put(hit_key(hit), encode_hit(hit), self._store.find)
            return self._logged(
                StepCached(
                    step=launch.step,
                    attempt=launch.attempt,
                    value=event.value,
                    fingerprint=fingerprint,
                    origin=origin,
                    notes=event.notes,
                )
            )
        keep_rates(step.limits)
        conclusion = self._call(launch)
        if conclusion.kind == "succeeded":
            self._store.keep(
                CacheEntry(
                    fingerprint=fingerprint,
                    pipeline=self._pipeline,
                    run=self.run.id,
                    step=launch.step,
                    attempt=launch.attempt,
                    event=conclusion.payload,
                    components=components_map(components),
                    expired=found,
                )
            )
        return self._ended(launch, conclusion)

    def _ended(self, launch: Launch, conclusion: Conclusion) -> Event:
        """Give the end of an attempt, which may come too late to count; what it recorded is kept all the same."""
        event = self._read(launch.step, conclusion)
        if isinstance(event, (StepSucceeded, StepFailed, StepSkipped)) and event.notes is not None:
            self._store.notes[self.run.id, launch.step, launch.attempt] = event.notes
        return event

    def _logged(self, event: Decision | StepApproved) -> Event:
        """Give the event as the log would give it back: what is too long is cut."""
        step, kind, payload = encode_event(event)
        return self._read(step, Conclusion(kind, payload))

    def _read(self, step: str | None, written: Conclusion) -> Event:
        subject = EventSubject(self._pipeline, self.run.id, step, written.kind)
        found = decode_event(subject, written.payload, time.time())
        assert found is not None, "this version knows what it writes"
        return found

    def _files(self) -> AttemptFiles:
        return AttemptFiles(self._store.shelf, self._store.spool, allow_pickle=True)

    def _call(self, launch: Launch) -> Conclusion:
        """Run one attempt to its end."""
        step = self.run.spec(launch.step)
        subject = LaunchSubject(step.queue, DEFAULT_PRIORITY, self.run.id, launch.step, launch.attempt)
        order = order_of(step, launch.arguments, pipeline=self._pipeline)
        files = self._files()
        began_s = time.time()
        try:
            # Through the same encode and decode as on the bus: a step cannot see what another did to an argument.
            data = encode_launch(order, f"step {step.name!r}", files.writer(order))
            order = decode_launch(data)
        except EvpipeError as error:
            return conclude_failure(subject, Failure(message=str(error)), began_s, Reason.OUTPUT)
        kept = _Kept(subject, self._store.display, self._prefix)
        recorder = _Recorder(subject, order, kept, files, self._store.base)
        try:
            with entered(recorder, of_process=True):
                conclusion = self._called(subject, order, data, files, began_s)
        finally:
            recorder.end()
        if not kept.any:
            return conclusion
        packed, _ = kept.packed(lambda: self._store.base.path)
        return conclusion._replace(payload=with_notes(conclusion.payload, packed))

    def _called(
        self, subject: LaunchSubject, order: LaunchOrder, data: bytes, files: AttemptFiles, began_s: float
    ) -> Conclusion:
        """Call the step's function."""
        step = self.run.spec(subject.step)
        try:
            if step.executor == "command":
                return self._command(subject, files.decode(data, order) if order.artifacts else order, files)
            function = find_function(step.code)
            positional, named = (files.decode(data, order) if order.artifacts else order).call()
            if step.executor == "inline":
                value = _Coroutine(function, positional, named).to_end()
            else:
                value = function(*positional, **named)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit of a step is its failure
            return conclude_error(subject, _from_step_on(error), began_s)
        if step.timeout_s is not None and time.time() - began_s > step.timeout_s:
            return conclude_failure(subject, timeout_failure(step.timeout_s), began_s, Reason.TIMEOUT)
        return conclude_value(subject, order, value, began_s, files)

    def _command(self, launch: LaunchSubject, order: LaunchOrder, files: AttemptFiles) -> Conclusion:
        folder = self._store.folder()
        shown = _Shown()
        try:
            place = Place(folder, self._store.commands, os.environ)
            # A program is another process: it can be killed when its time is over.
            return conclude_command(launch, order, place, files, shown, timeout_s=order.timeout_s)
        finally:
            shown.end()
            shutil.rmtree(folder, ignore_errors=True)


class _Shown:
    """Shows what a program writes where the steps print, also where that is no file."""

    def __init__(self) -> None:
        make = codecs.getincrementaldecoder("utf-8")
        self._decoders = {"stdout": make(errors="replace"), "stderr": make(errors="replace")}
        #: Streams on which a line has begun.
        self._open: set[str] = set()

    def __call__(self, stream: str, data: bytes) -> None:
        text = self._decoders[stream].decode(data)
        if text:
            (self._open.discard if text.endswith("\n") else self._open.add)(stream)
            self._write(stream, text)

    def end(self) -> None:
        """End lines that have no end."""
        for stream in self._open:
            self._write(stream, "\n")

    @staticmethod
    def _write(stream: str, text: str) -> None:
        out = sys.stdout if stream == "stdout" else sys.stderr
        out.write(text)
        out.flush()


class _Kept(Kept):
    """What an attempt says: kept, and its lines shown."""

    def __init__(self, launch: LaunchSubject, display: Display | None, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix
        self._launch = launch
        self._display = display
        self._lock = threading.Lock()

    def progress(self, fraction: float, message: str, at_s: float) -> None:
        """Nobody could look at it: the step runs in this thread."""

    def points(self, rows: bytes, count: int, left_out: int = 0) -> None:
        with self._lock:
            self.add_rows(rows, count, left_out)

    def artifact(self, name: str, packed: bytes) -> None:
        with self._lock:
            self.add_artifact(name, packed)

    def line(self, level: str, text: str, fields: Mapping[str, Any], at_s: float) -> None:
        if self._display is not None:
            step, attempt = self._prefix + for_people(self._launch.step), self._launch.attempt
            entry = LogEntry(at_s=at_s, step=step, attempt=attempt, stream="log", text=text, level=level, fields=fields)
            self._display.output(entry)


class _Recorder(AttemptRecorder):
    """As where a worker runs it, with a folder below the run's."""

    def __init__(
        self, launch: LaunchSubject, order: LaunchOrder, kept: _Kept, files: AttemptFiles, base: TemporaryFolder
    ) -> None:
        super().__init__(launch, order, kept, files, "")
        self._base = base
        self._made: Path | None = None

    def folder(self) -> Path:
        if self._made is None:
            self._made = Path(tempfile.mkdtemp(dir=self._base.path))
        return self._made

    def end(self) -> None:
        self.closed = True
        if self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)


def _from_step_on(error: BaseException) -> BaseException:
    """Leave out of the traceback what is not the step's: our call of it, and the loop of an async one."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").split(".")[0] in _NOT_THE_STEP:
        frames = frames.tb_next
    return error.with_traceback(frames or error.__traceback__)


_NOT_THE_STEP: Final = frozenset({"evpipe", "anyio", "asyncio"})


class _Coroutine:
    """A call of an async step: in a loop of its own, which may have to be in another thread."""

    def __init__(self, function: Any, positional: Any, named: Any) -> None:
        self._function = function
        self._positional = positional
        self._named = named
        self._token: EventLoopToken | None = None
        self._scope: anyio.CancelScope | None = None

    def to_end(self) -> Any:
        value = outside_of_any_loop(lambda: anyio.run(self._awaited), self._interrupt)
        if self._scope is not None and self._scope.cancel_called:
            raise KeyboardInterrupt
        return value

    async def _awaited(self) -> Any:
        self._token = current_token()
        with anyio.CancelScope() as self._scope:
            return await self._function(*self._positional, **self._named)

    def _interrupt(self) -> bool:
        """End it where it does not run in the thread that Ctrl-C comes to."""
        if self._scope is None:
            return False
        anyio.from_thread.run_sync(self._scope.cancel, token=self._token)
        return True
