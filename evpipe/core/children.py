"""What the end of a run means to the step that it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from evpipe.core.events import Failure, Finished, StepCancelled, StepFailed, StepSucceeded
from evpipe.core.names import for_people
from evpipe.core.states import Reason, RunStatus

if TYPE_CHECKING:
    from evpipe.core.machine import Run


EndOfStep: TypeAlias = StepSucceeded | StepFailed | StepCancelled


def end_of_step(run: Run, end: Finished) -> EndOfStep:
    """Give the end of the step that a run is.

    Args:
        run: folded so far that `end` was decided.
    """
    parent = run.parent
    assert parent is not None, "only of runs that are steps"
    if end.status is RunStatus.SUCCEEDED:
        # When the step began is known from its own run's log.
        return StepSucceeded(step=parent.step, attempt=parent.attempt, value=end.value)
    if run.cancel is not None and run.cancel.by_parent:
        # As the other steps of the run around it that had not ended.
        reason = end.reason or Reason.REQUEST
        return StepCancelled(step=parent.step, attempt=parent.attempt, reason=reason, message=end.message)
    reason, failure = _why(run, end)
    return StepFailed(step=parent.step, attempt=parent.attempt, reason=reason, failure=failure)


def _why(run: Run, end: Finished) -> tuple[Reason, Failure]:
    if end.status is RunStatus.CANCELLED:
        return Reason.REQUEST, Failure(message=f"its run {run.id} was cancelled: {end.message}")
    if end.reason is Reason.DEADLINE:
        # The step's own limit is a time-out of the step; the pipeline's is a failure of its run like others.
        assert run.parent is not None
        is_own = run.parent.deadline_s is not None and run.parent.deadline_s == run.deadline_s
        return Reason.TIMEOUT if is_own else Reason.DEADLINE, Failure(message=f"its run {run.id}: {end.message}")
    if not run.failed:
        # It was refused, or its value cannot be made: nothing of that is better next time.
        return end.reason or Reason.ERROR, Failure(message=f"its run {run.id}: {end.message}")
    name = run.failed[0]
    state = run.steps[name]
    found = state.failure or Failure(message=state.message)
    message = found.message
    if run.spec(name).child is None:
        # Once, at the step that did it: however deep that is, the message says where.
        message = f"{message} (step {for_people(name)!r} of run {run.id} of pipeline {_pipeline(run)!r})"
    # A step that was lost too often is no loss of this attempt, which nobody can lose.
    reason = Reason.ERROR if state.reason in (None, Reason.LOST) else state.reason
    return reason, Failure(message=message, types=found.types, traceback=found.traceback)


def _pipeline(run: Run) -> str:
    return run.graph.pipeline if run.graph is not None else ""
