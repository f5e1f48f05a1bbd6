"""Why a step does not run, or did not: what its run's log says of it, down to what it all comes from.

`why` looks at a folded run, which may have ended. What the log does not say (who serves a queue, what else is in it)
the client adds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from evpipe.core.bindings import BindingError, ParameterRef, resolve
from evpipe.core.conditions import condition_references
from evpipe.core.events import CancelCause, StepCancelled, StepFailed, StepSkipped
from evpipe.core.lineage import child_run_id
from evpipe.core.mapping import condition_at, element_of
from evpipe.core.names import SEPARATOR, for_people, repr_of
from evpipe.core.states import STEP_VALUES, OnFailure, Reason, RunIf, StepStatus

if TYPE_CHECKING:
    from evpipe.core.run_state import RunState, StepState

#: Causes that are named of one step, and in all, and how deep they go before the steps between are left out.
BREADTH_MAX: Final = 5
CAUSES_MAX: Final = 40
DEPTH_MAX: Final = 8
SHOWN_CHARS_MAX: Final = 60


class Cause(StrEnum):
    """Why a step is as it is."""

    #: It succeeded, or the cache had its result.
    DONE = "done"
    RUNNING = "running"
    #: Steps before it have not ended.
    PARENTS = "parents"
    #: It is an `on_exit` handler, and other steps have not ended.
    HANDLER = "handler"
    #: Its next attempt begins later.
    BACK_OFF = "back_off"
    #: It is a pipeline, whose run goes on.
    CHILD = "child"
    #: For an answer, an event or a moment, without a worker.
    WAIT = "wait"
    #: Its launch is in its queue.
    QUEUED = "queued"
    #: Nobody serves its queue, no controller answers.
    NO_WORKER = "no_worker"
    NO_CONTROLLER = "no_controller"
    #: It is not launched yet: it is not its turn in its queue, or the queue, a mutex or semaphore, or a rate is full.
    WINDOW = "window"
    QUEUE_LIMIT = "queue_limit"
    SEMAPHORE = "semaphore"
    RATE = "rate"
    #: Others' launches are before its own.
    BEHIND = "behind"
    #: A step with the same fingerprint runs now, whose result it will have.
    SAME_RUNS = "same_runs"
    #: What becomes of it is known, and on its way into the log.
    DECIDED = "decided"
    FAILED = "failed"
    #: The run was refused.
    REJECTED = "rejected"
    #: Its own condition was false, its `run_if` did not hold, or its body raised `SkipStep`.
    CONDITION = "condition"
    #: Skipped for what became of the steps before it.
    UPSTREAM = "upstream"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """One link of a chain of causes."""

    run: str
    #: "" if it is about no step.
    step: str
    #: None if it is about no step.
    status: StepStatus | None
    cause: Cause
    #: One line, without the step's name.
    message: str
    #: What that comes from: of a step that waits, what holds it up; of one that was skipped, what failed.
    because: tuple[Why, ...] = ()
    #: Why it failed, was skipped or was cancelled.
    reason: Reason | None = None
    #: Since when, and when it goes on, by the log's clock: seconds since 1970.
    since_s: float | None = None
    due_at_s: float | None = None
    #: Who runs it.
    worker: str = ""
    #: The run that it is, if it is a pipeline, and has begun or failed.
    child: str = ""

    def roots(self) -> list[Why]:
        """Give what it all comes from: the causes that have none themselves."""
        found: list[Why] = []
        left = [self]
        while left:
            one = left.pop()
            left += reversed(one.because)
            if not one.because:
                found.append(one)
        return found


#: Links about a step that may be a run of its own.
_OF_CHILDREN: Final = frozenset({Cause.CHILD, Cause.FAILED})


def why(run: RunState, name: str) -> Why:
    """Say why a step of a run is as it is."""
    return _Chain(run).link(name, 0)


def why_of_run(run: RunState) -> list[Why]:
    """Say what a run goes on with, or what failed it: steps that each wait for no other."""
    chain = _Chain(run)
    return [chain.link(name, DEPTH_MAX - 1) for name in chain.blocking()]


@dataclass
class _Chain:
    run: RunState
    #: Steps that the chain names already: each is explained once.
    named: set[str] = field(default_factory=set)

    def link(self, name: str, depth: int) -> Why:
        self.named.add(name)
        state = self.run.steps[name]
        if (name, StepCancelled) in self.run.decisions:
            return self._cancelled(name, state, self.run.cancel.message if self.run.cancel is not None else "", depth)
        if name in self.run.expansions:
            return self._node(name, state, depth)
        match state.status:
            case StepStatus.PENDING:
                return self._pending(name, state, depth)
            case StepStatus.QUEUED:
                again = f"attempt {state.attempt} " if state.attempt > 1 else ""
                message = f"{again}waits in the queue {self.run.spec(name).queue!r} for a worker"
                return self._one(name, state, Cause.QUEUED, message, since_s=state.queued_at_s)
            case StepStatus.RUNNING if self.run.spec(name).wait is not None:
                message = self.run.waits_for(name)
                since_s, due_at_s = state.started_at_s, state.due_at_s
                return self._one(name, state, Cause.WAIT, message, since_s=since_s, due_at_s=due_at_s)
            case StepStatus.RUNNING if (child := self.run.spec(name).child) is not None:
                again = f", attempt {state.attempt}" if state.attempt > 1 else ""
                child_run = child_run_id(self.run.id, name, state.attempt)
                message = f"runs as run {child_run} of pipeline {child.pipeline!r}{again}"
                if self.run.cancel is not None and not self._goes_on(name):
                    message += ", which is asked to end"
                return self._one(name, state, Cause.CHILD, message, since_s=state.started_at_s)
            case StepStatus.RUNNING:
                again = f", attempt {state.attempt}" if state.attempt > 1 else ""
                on = f" on worker {state.worker}" if state.worker else ""
                return self._one(name, state, Cause.RUNNING, f"runs{on}{again}", since_s=state.started_at_s)
            case StepStatus.SUCCEEDED:
                return self._one(name, state, Cause.DONE, "succeeded", since_s=state.ended_at_s)
            case StepStatus.CACHED:
                origin = state.cached_from
                of = f" of step {for_people(origin.step)!r} of run {origin.run}" if origin is not None else ""
                return self._one(name, state, Cause.DONE, f"has the result{of}", since_s=state.ended_at_s)
            case StepStatus.FAILED:
                after = f" in attempt {state.attempt}" if state.attempt > 1 else ""
                message = f"failed{after}: {state.message}"
                return self._one(name, state, Cause.FAILED, message, since_s=state.ended_at_s, reason=state.reason)
            case StepStatus.SKIPPED:
                return self._skipped(name, state, state.reason, state.message, depth)
            case StepStatus.CANCELLED:
                return self._cancelled(name, state, state.message, depth)

    def _goes_on(self, name: str) -> bool:
        """Say whether a step runs also in a run that is cancelled."""
        step = self.run.spec(name)
        return step.on_exit or step.run_if is RunIf.ALWAYS

    def _node(self, name: str, state: StepState, depth: int) -> Why:
        """Say of a mapped step what its elements are."""
        count = self.run.expansions[name].count
        elements = [element_of(name, index) for index in range(count)]
        if not state.ended:
            left = [element for element in elements if not self.run.steps[element].ended]
            of = f"{len(left):,} of its {count:,} elements" if count > 1 else "its only element"
            message = f"{of} {'has' if len(left) == 1 else 'have'} not ended"
            return self._one(name, state, Cause.RUNNING, message, because=self._links(left, depth))
        bad = [element for element in elements if self.run.steps[element].status is state.status]
        if state.status in STEP_VALUES:
            return self._one(
                name, state, Cause.DONE, f"has {count:,} elements, and all have ended", since_s=state.ended_at_s
            )
        cause = {StepStatus.FAILED: Cause.FAILED, StepStatus.SKIPPED: Cause.UPSTREAM}.get(state.status, Cause.CANCELLED)
        message = f"{state.status.value}: {state.message}"
        because = self._links(bad, depth)
        return self._one(name, state, cause, message, reason=state.reason, since_s=state.ended_at_s, because=because)

    # ---- steps that have not begun

    def _pending(self, name: str, state: StepState, depth: int) -> Why:
        run = self.run
        if state.due_at_s is not None:
            before = f", the one before failed: {state.message}" if state.message else ""
            message = f"attempt {state.attempt} begins later{before}"
            return self._one(name, state, Cause.BACK_OFF, message, due_at_s=state.due_at_s)
        skipped = run.decisions.get((name, StepSkipped))
        if isinstance(skipped, StepSkipped):
            return self._skipped(name, state, skipped.reason, skipped.message, depth)
        failed = run.decisions.get((name, StepFailed))
        if isinstance(failed, StepFailed):
            return self._one(name, state, Cause.DECIDED, f"is to fail: {failed.failure.message}", reason=failed.reason)
        if run.spec(name).on_exit:
            left = run.open_count - len(run.graph.handlers if run.graph is not None else ())
            message = f"begins when all other steps have ended: {left:,} {'has' if left == 1 else 'have'} not"
            return self._one(name, state, Cause.HANDLER, message, because=self._links(self._under_way(), depth))
        above = [parent for parent in self._parents(name) if not run.steps[parent].ended]
        if not above:
            # Kept back by a decision that stops the run, or about to be launched.
            message = "is about to begin"
            if run.cancel is not None:
                message = f"will not begin, its run is asked to end: {run.cancel.message}"
            return self._one(name, state, Cause.DECIDED, message)
        message = f"waits for {_named(above)}"
        if depth + 1 >= DEPTH_MAX:
            between, last = self._far(above[0])
            links = self._links([last], depth)
            message += f", {between:,} steps further on for {for_people(last)!r}" if between else ""
        else:
            links = self._links(above, depth)
        return self._one(name, state, Cause.PARENTS, message, because=links)

    def _far(self, name: str) -> tuple[int, str]:
        """Follow a step upwards to one that waits for no other; give how many steps that were, and that one."""
        count = 0
        while True:
            above = next((p for p in self._parents(name) if not self.run.steps[p].ended), None)
            if above is None:
                return count, name
            count, name = count + 1, above

    def _under_way(self) -> list[str]:
        under_way = (StepStatus.QUEUED, StepStatus.RUNNING)
        states = self.run.steps.items()
        found = [name for name, state in states if state.status in under_way or state.due_at_s is not None]
        return found[: BREADTH_MAX + 1]

    # ---- steps that will not

    def _skipped(self, name: str, state: StepState, reason: Reason | None, message: str, depth: int) -> Why:
        run = self.run
        step = run.spec(name)
        above = [parent for parent in self._parents(name) if run.steps[parent].ended]
        if state.attempt:
            said = f"skipped itself: {message}"
            return self._one(name, state, Cause.CONDITION, said, reason=reason, since_s=state.ended_at_s)
        if reason is Reason.CONDITION:
            left_out = [p for p in above if run.steps[p].status is StepStatus.SKIPPED]
            if step.when is None or left_out or not message.startswith("its condition"):
                because = self._links(left_out, depth)
                return self._one(name, state, Cause.CONDITION, f"skipped: {message}", reason=reason, because=because)
            saw = self._values(name)
            message = f"skipped: {message}" + (f" ({saw})" if saw else "")
            return self._one(name, state, Cause.CONDITION, message, reason=reason)
        bad = [p for p in above if self._spoils(p)]
        if depth + 1 >= DEPTH_MAX and bad:
            bad = [self._origin(bad[0])]
        because = self._links(bad, depth)
        return self._one(name, state, Cause.UPSTREAM, f"skipped: {message}", reason=reason, because=because)

    def _cancelled(self, name: str, state: StepState, message: str, depth: int) -> Why:
        cancel = self.run.cancel
        because: tuple[Why, ...] = ()
        if cancel is not None and cancel.cause is CancelCause.FAIL_FAST and self.run.failed:
            because = self._links(self.run.failed[:1], depth)
        how = {CancelCause.DEADLINE: "by the run's deadline", CancelCause.FAIL_FAST: "by fail_fast"}
        by = how.get(cancel.cause, "on request") if cancel is not None else "on request"
        parent = self.run.parent
        if cancel is not None and cancel.by_parent and parent is not None:
            by = f"with step {for_people(parent.step)!r} of run {parent.run}, which it is a part of"
        text = f"cancelled {by}" + (f": {message}" if message and message != f"cancelled {by}" else "")
        reason, since_s = state.reason, state.ended_at_s
        return self._one(name, state, Cause.CANCELLED, text, reason=reason, since_s=since_s, because=because)

    def _spoils(self, parent: str) -> bool:
        state = self.run.steps[parent]
        if state.status is StepStatus.FAILED:
            return self.run.spec(parent).on_failure is not OnFailure.CONTINUE
        return state.status not in STEP_VALUES and state.reason is not Reason.CONDITION

    def _origin(self, name: str) -> str:
        """Follow a step that was skipped for a failure up to what failed."""
        while self.run.steps[name].status is StepStatus.SKIPPED:
            above = next((p for p in self._parents(name) if self.run.steps[p].ended and self._spoils(p)), None)
            if above is None:
                break
            name = above
        return name

    def _values(self, name: str) -> str:
        """Show the values that a condition was about."""
        step = self.run.spec(name)
        if step.when is None:
            return ""
        try:
            when = condition_at(step, self.run.trees_of(name)) if SEPARATOR in name else step.when
        except BindingError:
            return ""
        found: dict[str, str] = {}
        for ref in condition_references(when):
            shown_ref = ref.name if isinstance(ref, ParameterRef) else str(ref)
            try:
                text = repr_of(resolve(ref, self.run.outputs, self.run.parameters))
            except BindingError:
                continue
            found[shown_ref] = text if len(text) <= SHOWN_CHARS_MAX else text[: SHOWN_CHARS_MAX - 1] + "…"
        return ", ".join(f"{ref} is {text}" for ref, text in list(found.items())[:BREADTH_MAX])

    # ---- links

    def _child(self, name: str, state: StepState) -> str:
        return "" if self.run.spec(name).child is None else child_run_id(self.run.id, name, state.attempt)

    def blocking(self) -> list[str]:
        """Name the steps that a run goes on with, or that failed it; at most `BREADTH_MAX`."""
        run = self.run
        if run.failed:
            return run.failed[:BREADTH_MAX]
        return [name for name in self._under_way() if name not in run.expansions][:BREADTH_MAX]

    def _parents(self, name: str) -> Iterable[str]:
        assert self.run.graph is not None
        return self.run.parents_of(name)

    def _links(self, names: Iterable[str], depth: int) -> tuple[Why, ...]:
        found: list[Why] = []
        for name in names:
            if len(found) >= BREADTH_MAX or len(self.named) >= CAUSES_MAX:
                break
            if name not in self.named:
                found.append(self.link(name, depth + 1))
        return tuple(found)

    def _one(
        self,
        name: str,
        state: StepState,
        cause: Cause,
        message: str,
        *,
        because: tuple[Why, ...] = (),
        reason: Reason | None = None,
        since_s: float | None = None,
        due_at_s: float | None = None,
    ) -> Why:
        return Why(
            run=self.run.id,
            step=for_people(name),
            status=state.status,
            cause=cause,
            message=message,
            because=because,
            reason=reason,
            since_s=since_s,
            due_at_s=due_at_s,
            worker=state.worker if state.status is StepStatus.RUNNING else "",
            child=self._child(name, state) if cause in _OF_CHILDREN else "",
        )


def _named(names: list[str]) -> str:
    listed = ", ".join(repr(for_people(name)) for name in names[:BREADTH_MAX])
    more = len(names) - BREADTH_MAX
    return ("step " if len(names) == 1 else "steps ") + listed + (f" and {more:,} more" if more > 0 else "")
