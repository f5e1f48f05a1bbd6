"""The fold of one run: an event of its log goes in, commands come out.

`Run.step` is the whole of the controller's judgement. It has no clock, no IO and no randomness, so the
same log gives the same commands wherever it is folded: in the controller, in the controller that takes
over from it, in a client that shows the run. State is changed in place; a copy of it per event would
cost minutes for a graph of 100,000 steps.

`step` is total: an event that was overtaken (repeated, of an older attempt, after the end) gives no
commands, one that cannot be gives `Quarantine`; neither changes anything.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeAlias, assert_never

from evpipe.core.bindings import BindingError, Gathered, resolve, resolve_all
from evpipe.core.commands import Await, CancelRun, Command, Decide, Launch, Quarantine, StopAttempt, SubmitRun, WakeAt
from evpipe.core.events import (
    CancelCause,
    CancelRequested,
    Decision,
    Due,
    Event,
    Failure,
    Finished,
    StepApproved,
    StepCached,
    StepCancelled,
    StepFailed,
    StepReceived,
    StepRetried,
    StepSkipped,
    StepStarted,
    StepSucceeded,
    Submitted,
)
from evpipe.core.exits import RUN, summary_of
from evpipe.core.graph import STEPS_MAX, Step
from evpipe.core.mapping import base_of, element_of, expand, split_element
from evpipe.core.names import SEPARATOR, for_people
from evpipe.core.readiness import Readiness
from evpipe.core.retry import LOST_MAX, RetryPolicy
from evpipe.core.rules import reason_to_skip
from evpipe.core.run_state import RunState, StepState
from evpipe.core.states import (
    RUN_ENDS,
    RUN_TRANSITIONS,
    STEP_ENDS,
    OnFailure,
    Reason,
    RunIf,
    RunStatus,
    StepStatus,
)
from evpipe.core.waits import EARLY_S, WaitKind, answer_problem, check_begun

Commands: TypeAlias = tuple[Command, ...]

#: Of failures that no further attempt follows.
_FINAL_REASONS = frozenset({Reason.OUTPUT, Reason.REJECTED, Reason.REQUEST})
_REASON_OF_CAUSE = {
    CancelCause.REQUEST: Reason.REQUEST,
    CancelCause.DEADLINE: Reason.DEADLINE,
    CancelCause.FAIL_FAST: Reason.UPSTREAM,
}


class Run(RunState):
    """One run, folded from its log."""

    __slots__ = ()

    def step(self, event: Event) -> Commands:
        """Apply the next event of the log.

        Returns:
            What follows from it; () if the event was overtaken; one `Quarantine` if it cannot be.

        """
        if self.status in RUN_ENDS:
            # Nothing of an ended run changes any more, its last moment neither.
            return ()
        before_s = self.at_s
        if event.at_s > before_s:
            self.at_s = event.at_s
        if type(event) is StepSucceeded and self.submitted_at_s is not None:
            # By far the most frequent.
            commands = self._succeeded(event)
        else:
            commands = self._apply(event)
        if commands and type(commands[0]) is Quarantine:
            self.at_s = before_s
        return commands

    def outstanding(self) -> Commands:
        """Give everything that the log so far calls for and that may not have been done.

        For whoever takes a run over after replaying it: as many commands as the run has attempts under
        way, waits and decisions that the log does not show.
        """
        if self.ended or self.submitted_at_s is None:
            return ()
        commands: list[Command] = [Decide(event) for event in self.decisions.values()]
        for name, state in self.steps.items():
            under_way = state.status is StepStatus.QUEUED or state.status is StepStatus.RUNNING
            if name in self.expansions:
                continue  # its elements say what there is to do
            if self.cancel is not None and not self._is_final(name):
                if under_way and self.spec(name).wait is None:
                    commands.append(self._stop(name, state))
            elif under_way:
                commands.extend(self._work(name, self.spec(name), state))
            elif state.due_at_s is not None and not state.ended:
                commands.append(WakeAt(state.due_at_s, name, state.attempt))
        return (*commands, *self._deadline())

    # ---- one handler per event -------------------------------------------------------------

    def _apply(self, event: Event) -> Commands:
        if self.submitted_at_s is None:
            if isinstance(event, Submitted):
                return self._submitted(event)
            return (Quarantine(f"{type(event).__name__} before the run was submitted"),)
        match event:
            case StepSucceeded():
                return self._succeeded(event)
            case StepStarted():
                return self._started(event)
            case StepCached():
                return self._cached(event)
            case StepApproved():
                return self._approved(event)
            case StepReceived():
                return self._received(event)
            case StepFailed():
                return self._failed(event)
            case StepRetried():
                return self._retried(event)
            case StepSkipped():
                return self._skipped(event)
            case StepCancelled():
                return self._cancelled(event)
            case Due():
                return self._due(event)
            case CancelRequested():
                return self._cancel_requested(event)
            case Finished():
                return self._finished(event)
            case Submitted():
                return ()
            case _:
                assert_never(event)

    def _submitted(self, event: Submitted) -> Commands:
        self.submitted_at_s = self.at_s
        self.parameters = event.parameters
        self.parent = event.parent
        if event.graph is None:
            return (self._decide(Finished(status=RunStatus.FAILED, reason=Reason.REJECTED, message=event.rejection)),)
        self.graph = event.graph
        self.steps = {name: StepState() for name in event.graph.steps}
        self.open_count = len(self.steps)
        self._handlers = len(event.graph.handlers)
        self._readiness = Readiness(event.graph)
        steps = event.graph.steps
        # A dict of its own only where elements are added.
        self._specs = steps if isinstance(steps, dict) and not event.graph.has_maps else dict(steps)
        return (*self._launch(self._readiness.roots()), *self._deadline(), *self._maybe_finish())

    def _succeeded(self, event: StepSucceeded) -> Commands:
        state, problem = self._current(event)
        if state is None:
            return problem
        state.become(StepStatus.SUCCEEDED)
        state.reason, state.message, state.failure = None, "", None  # those of the attempts before it
        if event.started_at_s and state.started_at_s is None:
            state.started_at_s = event.started_at_s
        state.notes = event.notes
        self.outputs[event.step] = event.value
        return self._ended(event.step, state)

    def _cached(self, event: StepCached) -> Commands:
        if event.step in self.steps and self.spec(event.step).cache is None:
            return (Quarantine(f"step {event.step!r} is not one that is cached"),)
        state, problem = self._current(event)
        if state is None:
            return problem
        # Another controller may have launched it.
        stop = StopAttempt(event.step, state.attempt)
        state.become(StepStatus.CACHED)
        state.reason, state.message, state.failure = None, "", None
        state.cached_from = event.origin
        state.notes = event.notes
        self.outputs[event.step] = event.value
        return (stop, *self._ended(event.step, state))

    def _started(self, event: StepStarted) -> Commands:
        state, problem = self._current(event)
        if state is None or state.status is StepStatus.RUNNING:
            return problem
        state.become(StepStatus.RUNNING)
        state.started_at_s = self.at_s
        state.worker = event.worker
        return ()

    def _failed(self, event: StepFailed) -> Commands:
        unlaunchable = (event.step, StepFailed) in self.decisions
        state, problem = self._current(event, pending=unlaunchable)
        if state is None:
            return problem
        if event.started_at_s and state.started_at_s is None:
            state.started_at_s = event.started_at_s
        state.reason, state.failure, state.message = event.reason, event.failure, event.failure.message
        again = self._again(event, state)
        if again is not None:
            return again
        self.decisions.pop((event.step, StepFailed), None)
        state.notes = event.notes
        return self._failed_for_good(event.step, state)

    def _failed_for_good(self, name: str, state: StepState) -> Commands:
        state.become(StepStatus.FAILED)
        step = self.spec(name)
        assert self.graph is not None
        self._choices |= self.graph.has_maps
        commands: Commands = ()
        if step.on_failure is OnFailure.FAIL:
            self.failed.append(name)
        if step.on_failure is not OnFailure.CONTINUE and self.cancel is None:
            # After a cancel every step that is left has its decision: to be cancelled, or skipped before it.
            commands = self._skip_below(name, "failed")
        # Before what becomes ready now is launched: the decision keeps it back.
        stop = self._maybe_fail_fast(name, step)
        return (*commands, *stop, *self._ended(name, state))

    def _retried(self, event: StepRetried) -> Commands:
        if event.step not in self.steps:
            return self._unknown(event.step)
        decided = self.decisions.get((event.step, StepRetried))
        if isinstance(decided, StepRetried) and decided.attempt == event.attempt:
            del self.decisions[event.step, StepRetried]
        return ()

    def _skipped(self, event: StepSkipped) -> Commands:
        if event.attempt:
            return self._skipped_itself(event)
        state = self.steps.get(event.step)
        if state is None:
            return self._unknown(event.step)
        if state.ended:
            return ()
        if self.decisions.pop((event.step, StepSkipped), None) is None:
            return (Quarantine(f"step {event.step!r} was skipped, but nothing before it failed"),)
        state.become(StepStatus.SKIPPED)
        state.reason, state.message = event.reason, event.message
        assert self.graph is not None
        self._choices |= event.reason is Reason.CONDITION or self.graph.has_maps
        return self._ended(event.step, state)

    def _skipped_itself(self, event: StepSkipped) -> Commands:
        """Take the end of an attempt whose body has decided that its step is left out."""
        state, problem = self._current(event)
        if state is None:
            return problem
        if event.reason is not Reason.CONDITION or self.spec(event.step).child is not None:
            return (Quarantine(f"step {event.step!r} cannot skip itself for the reason {event.reason.value}"),)
        state.become(StepStatus.SKIPPED)
        state.reason, state.message, state.failure = event.reason, event.message, None
        if event.started_at_s and state.started_at_s is None:
            state.started_at_s = event.started_at_s
        state.notes = event.notes
        self._choices = True
        return self._ended(event.step, state)

    def _cancelled(self, event: StepCancelled) -> Commands:
        state = self.steps.get(event.step)
        if state is None:
            return self._unknown(event.step)
        if state.ended:
            return ()
        if self.cancel is None or event.step in self.expansions:
            return (Quarantine(f"step {event.step!r} was cancelled, but nobody asked for it"),)
        self.decisions.pop((event.step, StepSkipped), None)
        state.become(StepStatus.CANCELLED)
        state.reason, state.message = event.reason, event.message
        return self._ended(event.step, state)

    def _due(self, event: Due) -> Commands:
        if event.step is None:
            if self._deadline_at_s() is None:
                return (Quarantine("the run's deadline is due, but it has none"),)
            if self.cancel is not None or self._closing() or ("", CancelRequested) in self.decisions:
                return ()
            message = f"the run was not done {self.deadline_s:g} s after its submit"
            return (self._decide(CancelRequested(cause=CancelCause.DEADLINE, message=message)),)
        state = self.steps.get(event.step)
        if state is None:
            return self._unknown(event.step)
        if state.due_at_s is None or event.attempt != state.attempt or state.ended:
            return ()
        if self.cancel is not None and not self._is_final(event.step):
            return ()
        if state.status is StepStatus.RUNNING:
            return self._wait_over(event.step, state)
        return self._begin(event.step, self.spec(event.step), state)

    def _cancel_requested(self, event: CancelRequested) -> Commands:
        if self.cancel is not None or self._closing():
            self.decisions.pop(("", CancelRequested), None)
            return ()
        self.cancel = event
        self.decisions.pop(("", CancelRequested), None)
        reason = _REASON_OF_CAUSE[event.cause]
        commands: list[Command] = []
        for name, state in self.steps.items():
            # A step that is to be skipped stays so: its parent's failure came first in the log.
            if state.ended or (name, StepSkipped) in self.decisions or self._is_final(name):
                continue
            if name in self.expansions:
                continue  # it ends with its elements
            for kind in (StepRetried, StepFailed, StepStarted):
                self.decisions.pop((name, kind), None)
            launched = state.status is not StepStatus.PENDING
            if launched and self.spec(name).wait is None:
                commands.append(stop := self._stop(name, state))
                if isinstance(stop, CancelRun):
                    continue
            attempt = state.attempt if launched else 0
            commands.append(
                self._decide(StepCancelled(step=name, attempt=attempt, reason=reason, message=event.message))
            )
        return (*commands, *self._maybe_finish())

    def _finished(self, event: Finished) -> Commands:
        # Final whoever wrote it and whatever this fold expected: every other reader stops here too.
        if not self.is_end(event):
            return (Quarantine(f"a run cannot finish as {event.status}"),)
        assert event.status in RUN_TRANSITIONS[self.status], f"{self.status} -> {event.status}"
        self.status, self.reason, self.message = event.status, event.reason, event.message
        if event.status is RunStatus.SUCCEEDED:
            # A value that was too large for the event is the one that this fold computed.
            decided = self.decisions.get(("", Finished))
            self.value = decided.value if isinstance(decided, Finished) and event.value is None else event.value
        self.decisions.clear()
        return ()

    # ---- waits -------------------------------------------------------------------------------

    def _begin_wait(self, name: str, step: Step, state: StepState) -> Commands:
        """Begin to wait; raises as `_begin`."""
        assert step.wait is not None
        arguments = self.arguments_of(name)
        check_begun(step.wait, arguments)
        state.become(StepStatus.RUNNING)
        state.started_at_s = self.at_s
        seconds = arguments["seconds"] if step.wait.kind is WaitKind.SLEEP else step.timeout_s
        state.due_at_s = None if seconds is None else self.at_s + seconds
        # Nothing hangs on it: it tells those who follow the log, as a worker's does.
        told = self._decide(StepStarted(step=name, attempt=state.attempt))
        return (told, *self._work(name, step, state))

    def _wait_over(self, name: str, state: StepState) -> Commands:
        """Take the moment at which a sleep, or the time of another wait, is over."""
        step = self.spec(name)
        assert step.wait is not None
        assert state.due_at_s is not None
        if state.due_at_s - self.at_s > EARLY_S:
            return (WakeAt(state.due_at_s, name, state.attempt),)
        if step.wait.kind is WaitKind.SLEEP:
            return self._waited(name, state, None)
        if "default" not in step.arguments:
            what = "answer" if step.wait.kind is WaitKind.APPROVAL else "such event"
            return self._waited_in_vain(name, state, Reason.TIMEOUT, f"no {what} within {step.timeout_s:g} s")
        return self._waited(name, state, self.arguments_of(name)["default"])

    def _approved(self, event: StepApproved) -> Commands:
        state, problem = self._waiting(event.step, (WaitKind.APPROVAL,), "answered")
        if state is None:
            return problem
        wait = self.spec(event.step).wait
        assert wait is not None
        wrong = answer_problem(wait, event.answer)
        if wrong is not None:
            return (Quarantine(f"step {event.step!r}: {wrong}"),)
        self.answers[event.step] = event
        if wait.reject_fails and event.answer is False:
            said = f"rejected by {event.by or 'somebody'}" + (f": {event.message}" if event.message else "")
            return self._waited_in_vain(event.step, state, Reason.REJECTED, said)
        return self._waited(event.step, state, wait.answer.taken(event.answer))

    def _received(self, event: StepReceived) -> Commands:
        state, problem = self._waiting(event.step, (WaitKind.SIGNAL, WaitKind.RUN_EVENT), "given an event")
        return problem if state is None else self._waited(event.step, state, event.value)

    def _waiting(self, name: str, kinds: tuple[WaitKind, ...], done: str) -> tuple[StepState | None, Commands]:
        """Give the state of a step that waits for what has come, else None and the answer to it."""
        state = self.steps.get(name)
        if state is None:
            return None, self._unknown(name)
        wait = self.spec(name).wait
        if wait is None or wait.kind not in kinds:
            return None, (Quarantine(f"step {name!r} was {done}, and it is none that waits for that"),)
        if state.ended or (self.cancel is not None and not self._is_final(name)):
            return None, ()
        if state.status is not StepStatus.RUNNING:
            return None, (Quarantine(f"step {name!r} was {done} before it began to wait"),)
        return state, ()

    def _of_wait(self, event: StepSucceeded | StepStarted | StepFailed | StepCached | StepSkipped) -> Commands:
        """Answer an event of an attempt about a step that has none."""
        if isinstance(event, StepStarted):
            self.decisions.pop((event.step, StepStarted), None)
            return ()
        return (Quarantine(f"{type(event).__name__} of step {event.step!r}, which only waits"),)

    def _waited(self, name: str, state: StepState, value: Any) -> Commands:
        self.decisions.pop((name, StepStarted), None)
        state.become(StepStatus.SUCCEEDED)
        self.outputs[name] = value
        return self._ended(name, state)

    def _waited_in_vain(self, name: str, state: StepState, reason: Reason, message: str) -> Commands:
        self.decisions.pop((name, StepStarted), None)
        state.reason, state.message, state.failure = reason, message, Failure(message=message)
        return self._failed_for_good(name, state)

    # ---- what follows ------------------------------------------------------------------------

    def _current(
        self, event: StepSucceeded | StepStarted | StepFailed | StepCached | StepSkipped, *, pending: bool = False
    ) -> tuple[StepState | None, Commands]:
        """Give the step's state if the event is about its attempt under way, else None and the answer.

        Args:
            pending: the step may be one that could not be launched.

        """
        state = self.steps.get(event.step)
        if state is None:
            return None, self._unknown(event.step)
        status = state.status
        if status in STEP_ENDS or event.attempt < state.attempt:
            return None, ()
        under_way = status is StepStatus.QUEUED or status is StepStatus.RUNNING
        if event.attempt > state.attempt or not (under_way or pending) or event.step in self.expansions:
            if event.attempt == state.attempt and self.cancel is not None and isinstance(event, StepFailed):
                return None, ()  # it could not be launched, but the cancel came first in the log
            kind = type(event).__name__
            return None, (Quarantine(f"{kind} of attempt {event.attempt} of {event.step!r}, which was not launched"),)
        if status is StepStatus.RUNNING and self.spec(event.step).wait is not None:
            # What the controller cannot put into the log ends it all the same.
            unheard = isinstance(event, StepFailed) and event.reason is Reason.OUTPUT
            if not unheard:
                return None, self._of_wait(event)
            self.decisions.pop((event.step, StepStarted), None)
        return state, ()

    def _again(self, event: StepFailed, state: StepState) -> Commands | None:
        """Decide whether another attempt follows a failed one; None: the step has failed."""
        cancelled = self.cancel is not None and not self._is_final(event.step)
        if cancelled or event.reason in _FINAL_REASONS or state.status is StepStatus.PENDING:
            # What was refused is refused again, and what somebody has ended is not begun again by itself.
            # Pending: its arguments cannot be made, so no further attempt could be launched either.
            return None
        policy = self.spec(event.step).retries
        if event.reason is Reason.LOST:
            if state.losses >= LOST_MAX or self._too_late(event.step, state, policy, self.at_s):
                return None
            state.losses += 1
            lost = state.attempt
            state.attempt += 1
            return (StopAttempt(event.step, lost), *self._begin(event.step, self.spec(event.step), state))
        if state.failures >= policy.count or not policy.matches(event.failure.types):
            return None
        jitter_key = f"{self.id}.{event.step}.{state.attempt + 1}"
        delay_s = policy.delay_before(state.failures + 1, jitter_key=jitter_key)
        due_at_s = self.at_s + delay_s
        if self._too_late(event.step, state, policy, due_at_s):
            return None
        state.failures += 1
        state.attempt += 1
        decided = self._decide(StepRetried(step=event.step, attempt=state.attempt, due_at_s=due_at_s))
        if not delay_s:
            return (decided, *self._begin(event.step, self.spec(event.step), state))
        state.become(StepStatus.PENDING)
        state.started_at_s = None
        state.due_at_s = due_at_s
        return (decided, WakeAt(due_at_s, event.step, state.attempt))

    def _too_late(self, name: str, state: StepState, policy: RetryPolicy, at_s: float) -> bool:
        """Say whether the time for a step's attempts is over when the next one would begin."""
        if policy.within_s is None:
            return False
        began_s = self.began.get(name)
        if began_s is None:
            # What a worker says of its own clock counts as far as the log bears it out.
            queued_at_s = state.queued_at_s or 0.0
            began_s = min(self.at_s, max(queued_at_s, state.started_at_s or queued_at_s))
            self.began[name] = began_s
        if at_s <= began_s + policy.within_s:
            return False
        state.message += f" (another attempt would begin more than {policy.within_s:g} s after the first)"
        return True

    def _begin(self, name: str, step: Step, state: StepState) -> Commands:
        """Begin the current attempt of a step.

        Raises:
            BindingError: if its arguments cannot be made; nothing has changed then.
        """
        if step.wait is not None:
            return self._begin_wait(name, step, state)
        commands = self._work(name, step, state)
        if state.status is not StepStatus.QUEUED:
            state.become(StepStatus.QUEUED)
        state.started_at_s = None
        state.due_at_s = None
        if type(commands[0]) is SubmitRun:
            # It is nobody's turn to begin: its run goes on by itself from the moment that it is asked for.
            state.become(StepStatus.RUNNING)
            state.started_at_s = self.at_s
        return commands

    def _work(self, name: str, step: Step, state: StepState) -> Commands:
        """Give what has to be done, once or again, for the current attempt to go on."""
        if step.child is not None:
            return (SubmitRun(name, state.attempt, self.arguments_of(name)),)
        if step.wait is None:
            trees = step.arguments if SEPARATOR not in name else self.trees_of(name)
            return (Launch(name, state.attempt, resolve_all(trees, self.outputs, self.parameters)),)
        sleeps = step.wait.kind is WaitKind.SLEEP
        look_out: Commands = () if sleeps else (Await(name, state.attempt),)
        return look_out if state.due_at_s is None else (*look_out, WakeAt(state.due_at_s, name, state.attempt))

    def _stop(self, name: str, state: StepState) -> StopAttempt | CancelRun:
        """Give what ends the current attempt, which is under way, from outside."""
        return (StopAttempt if self.spec(name).child is None else CancelRun)(name, state.attempt)

    def submit_again(self, name: str) -> SubmitRun:
        """Give the submit of the run that the current attempt of a step is, as it was given when it began."""
        command = self._work(name, self.spec(name), self.steps[name])[0]
        assert isinstance(command, SubmitRun), "only of steps that are runs"
        return command

    def _launch(self, ready: list[str]) -> Commands:
        """Launch the first attempt of steps that became ready, or decide that they are skipped."""
        if not ready:
            return ()
        stopped = self.cancel is not None or ("", CancelRequested) in self.decisions
        branches = self.graph.branches if self.graph is not None else {}
        commands: list[Command] = []
        # It grows while mapped steps among them get their elements.
        for name in ready:
            state = self.steps[name]
            if state.status is not StepStatus.PENDING or (self.decisions and (name, StepSkipped) in self.decisions):
                continue
            step = self._specs[name]
            if stopped and step.run_if is not RunIf.ALWAYS:
                continue
            try:
                if self._choices or step.run_if is not RunIf.ALL_SUCCEEDED or step.when is not None or name in branches:
                    skipped = reason_to_skip(self, name, step)
                    if skipped is not None:
                        commands.append(self._decide(skipped))
                        if skipped.reason is Reason.UPSTREAM:
                            commands.extend(self._skip_below(name, "was skipped"))
                        continue
                if step.mapped is not None and name.count(SEPARATOR) < step.mapped.levels:
                    decided, more = self._expand(name, step, state)
                    commands.extend(decided)
                    ready.extend(more)
                    continue
                state.attempt = 1
                commands.extend(self._begin(name, step, state))
            except BindingError as error:
                state.attempt = 1
                state.queued_at_s = self.at_s
                commands.append(self._decide(_unlaunchable(name, error)))
                continue
            state.queued_at_s = self.at_s
            self.status = RunStatus.RUNNING
        return tuple(commands)

    def _expand(self, name: str, step: Step, state: StepState) -> tuple[Commands, list[str]]:
        """Give a mapped step its elements.

        Returns:
            What was decided by it, and what became ready: elements, and what maps over them.

        Raises:
            BindingError: if it cannot be mapped; nothing has changed then.
        """
        assert self.graph is not None
        assert self._readiness is not None
        found = expand(self, name, step)
        if len(self.steps) + found.count > STEPS_MAX:
            # Of a product of very many lists the number is not one that can be written.
            count = f"{found.count:,}" if found.count < sys.maxsize else "far too many"
            raise BindingError(
                f"step {for_people(name)!r} would have {count} elements: a run has at most {STEPS_MAX:,} steps"
            )
        found.open_count = found.count
        self.expansions[name] = found
        self.open_count += found.count
        self.status = RunStatus.RUNNING
        state.become(StepStatus.RUNNING)
        state.queued_at_s = state.started_at_s = self.at_s
        elements = [element_of(name, index) for index in range(found.count)]
        # There may be some hundred thousand, and the lease has to be renewed.
        self.steps.update({element: StepState() for element in elements})
        self._specs.update(dict.fromkeys(elements, step))
        waiting_on = dict.fromkeys(elements, 0)
        nodes = step.mapped is not None and name.count(SEPARATOR) + 1 < step.mapped.levels
        for parent in self.graph.parents[step.name]:
            if step.name not in self.graph.aligned.get(parent, ()):
                continue
            node = parent + name[len(step.name) :]
            for index, element in enumerate(elements):
                other = element_of(node, index)
                above = self.steps.get(other)
                if above is not None and not above.ended and not (nodes and other in self.expansions):
                    waiting_on[element] += 1
        self._readiness.waiting_on.update(waiting_on)
        ready = [element for element, count in waiting_on.items() if count == 0]
        ready += self._readiness.count_down(self._aligned_below(name, expanded=True))
        if elements:
            return (), ready
        commands, more = self._node_ended(name)
        return commands, ready + more

    def may_launch(self, name: str, attempt: int) -> bool:
        """Say whether this attempt is under way, and to be launched if it was not."""
        state = self.steps[name]
        under_way = state.status in (StepStatus.QUEUED, StepStatus.RUNNING) and state.attempt == attempt
        return under_way and (self.cancel is None or self._is_final(name))

    def may_go_on(self, name: str) -> bool:
        """Say whether a step that has not ended goes on, which it does not when its run is cancelled."""
        return self.cancel is None or self._is_final(name)

    def _is_final(self, name: str) -> bool:
        """Whether a step runs to its end also when its run is cancelled."""
        return self.spec(name).run_if is RunIf.ALWAYS

    def _skip_below(self, failed: str, how: str) -> Commands:
        """Decide that everything that needs a step which failed, or was skipped for a failure, is skipped, too.

        What has another rule than the default waits for all its parents and is decided then; so is what comes after a
        step that a condition skipped, or the reason would depend on which of its parents ended first.
        Each step is decided at most once in a run, so this costs the edges that it walks and no more.
        """
        assert self.graph is not None
        commands: list[Command] = []
        above = [failed]
        while above:
            parent = above.pop()
            for name in self._below(parent):
                if self.steps[name].ended or (name, StepSkipped) in self.decisions:
                    continue
                if self.spec(name).run_if is not RunIf.ALL_SUCCEEDED:
                    continue
                outcome = how if parent == failed else "was skipped"
                event = StepSkipped(step=name, message=f"step {for_people(parent)!r} {outcome}")
                commands.append(self._decide(event))
                above.append(name)
        return tuple(commands)

    def _ended(self, name: str, state: StepState) -> Commands:
        ready = self._released(name, state)
        commands: Commands = ()
        if SEPARATOR in name:
            commands, more = self._ended_with(name, state)
            ready += more
        if ready:
            commands += self._launch(ready)
        return commands + self._maybe_finish() if self.open_count <= self._handlers else commands

    def _released(self, name: str, state: StepState) -> list[str]:
        """Take down that a step has ended; give what became ready by it."""
        state.ended_at_s = self.at_s
        state.due_at_s = None
        if self.decisions:
            self.decisions.pop((name, StepCancelled), None)
        self.open_count -= 1
        assert self._readiness is not None
        assert self.graph is not None
        return self._readiness.count_down(self._below(name) if self.graph.has_maps else self.graph.dependents[name])

    def _ended_with(self, element: str, state: StepState) -> tuple[Commands, list[str]]:
        """Take down how an element ended; where it was the last, its node has ended with it.

        Returns:
            What was decided by it, and what became ready.
        """
        name, _ = split_element(element)
        found = self.expansions[name]
        found.note(element, state, self.spec(name).on_failure)
        return self._node_ended(name) if found.open_count == 0 else ((), [])

    def _node_ended(self, name: str) -> tuple[Commands, list[str]]:
        """End a node of which every element has ended; as `_ended_with`."""
        node, step, found = self.steps[name], self.spec(name), self.expansions[name]
        commands: Commands = ()
        if found.failed is not None:
            node.become(StepStatus.FAILED)
            node.reason, node.message = found.failed
            if self.cancel is None:
                commands = self._skip_below(name, "failed")
        elif found.cancelled is not None:
            node.become(StepStatus.CANCELLED)
            node.reason, node.message = found.cancelled
        elif found.skipped is not None:
            node.become(StepStatus.SKIPPED)
            node.reason, node.message = found.skipped
            if self.cancel is None:
                commands = self._skip_below(name, "was skipped")
        else:
            node.become(StepStatus.SUCCEEDED)
        assert step.mapped is not None
        # However it ended: who runs all the same gets what there is.
        values = [self.output_of(element_of(name, index)) for index in range(found.count)]
        self.outputs[name] = Gathered(values, step.mapped.levels - name.count(SEPARATOR))
        ready = self._released(name, node)
        if SEPARATOR in name:
            # One call for each level of a map, of which there are few.
            above, more = self._ended_with(name, node)
            return (*commands, *above), [*ready, *more]
        return commands, ready

    def _below(self, name: str) -> Iterable[str]:
        """Give the steps that wait for the end of this one."""
        assert self.graph is not None
        if not self.graph.has_maps:
            return self.graph.dependents[name]
        if SEPARATOR in name:
            return self._aligned_below(name, expanded=False)
        if name not in self.expansions:
            return self.graph.dependents[name]
        aligned = self.graph.aligned.get(name, frozenset())
        return [below for below in self.graph.dependents[name] if below not in aligned]

    def _aligned_below(self, name: str, *, expanded: bool) -> list[str]:
        """Give the elements, or nodes, that wait for this element to end, or for this node to have elements."""
        assert self.graph is not None
        base = base_of(name)
        suffix = name[len(base) :]
        found: list[str] = []
        aligned = self.graph.aligned.get(base)
        if aligned is None:
            return found
        for below in sorted(aligned):
            other = below + suffix
            if other not in self.steps:
                continue
            mapped = self.graph.steps[below].mapped
            is_node = mapped is not None and suffix.count(SEPARATOR) < mapped.levels
            # A node waits for the elements of a node, and for the end of what has none.
            if is_node if expanded else not (is_node and name in self.expansions):
                found.append(other)
        return found

    def _maybe_fail_fast(self, name: str, step: Step) -> Commands:
        assert self.graph is not None
        if (
            not self.graph.fail_fast
            or step.on_failure is not OnFailure.FAIL
            or self.cancel is not None
            or self._closing()
            or self._is_last(name)  # nothing is left to stop
            or ("", CancelRequested) in self.decisions
        ):
            return ()
        event = CancelRequested(
            cause=CancelCause.FAIL_FAST, message=f"step {for_people(name)!r} failed and fail_fast is set"
        )
        return (self._decide(event),)

    def _is_last(self, name: str) -> bool:
        """Say whether nothing is open but this step, and what ends with it."""
        count = 1
        while SEPARATOR in name:
            name, _ = split_element(name)
            if self.expansions[name].open_count > 1:
                break
            count += 1
        return self.open_count <= self._handlers + count

    def _maybe_finish(self) -> Commands:
        """Decide on the end when all steps have ended; before it, when only the handlers are left, begin them."""
        if self.open_count > self._handlers or ("", Finished) in self.decisions:
            return ()
        if self.open_count == 0:
            return (self._decide(self._verdict()),)
        if RUN in self.outputs:
            return ()
        assert self.graph is not None
        self.outputs[RUN] = summary_of(self, self._verdict())
        # Of handlers that are mapped over empty lists nothing is left.
        return (*self._launch(list(self.graph.handlers)), *self._maybe_finish())

    def _closing(self) -> bool:
        """Whether all that a cancel or the deadline could stop has ended: handlers were told how the run ends."""
        return ("", Finished) in self.decisions or RUN in self.outputs

    def _verdict(self) -> Finished:
        """The end of a run of which every step has ended."""
        assert self.graph is not None
        if self.cancel is not None:
            cause = self.cancel.cause
            status = RunStatus.CANCELLED if cause is CancelCause.REQUEST else RunStatus.FAILED
            return Finished(status=status, reason=_REASON_OF_CAUSE[cause], message=self.cancel.message)
        if self.failed:
            state = self.steps[self.failed[0]]
            more = len(self.failed) - 1
            message = f"step {for_people(self.failed[0])!r} failed: {state.message}" + (
                f" (and {more} more)" if more else ""
            )
            return Finished(status=RunStatus.FAILED, reason=state.reason, message=message)
        try:
            value = resolve(self.graph.output, self.outputs, self.parameters)
        except BindingError as error:
            return Finished(status=RunStatus.FAILED, reason=Reason.OUTPUT, message=f"the pipeline's output: {error}")
        return Finished(status=RunStatus.SUCCEEDED, value=value)

    def _deadline(self) -> Commands:
        at_s = self._deadline_at_s()
        if at_s is None or self.cancel is not None or self._closing():
            return ()
        return (WakeAt(at_s, None, 0),)

    @property
    def deadline_s(self) -> float | None:
        """Seconds from its submit to its end: what its graph says, or the step that it is; None: no limit."""
        own = None if self.graph is None else self.graph.deadline_s
        given = None if self.parent is None else self.parent.deadline_s
        return given if own is None else own if given is None else min(own, given)

    def _deadline_at_s(self) -> float | None:
        if self.graph is None or self.submitted_at_s is None or self.deadline_s is None:
            return None
        return self.submitted_at_s + self.deadline_s

    def _decide(self, event: Decision) -> Decide:
        self.decisions[getattr(event, "step", None) or "", type(event)] = event
        return Decide(event)

    def _unknown(self, name: str) -> Commands:
        return (Quarantine(f"the graph has no step {name!r}"),)


def _unlaunchable(name: str, error: BindingError) -> StepFailed:
    return StepFailed(step=name, attempt=1, reason=Reason.OUTPUT, failure=Failure(message=str(error)))
