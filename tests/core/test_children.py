"""Steps that are runs of their own: what the fold asks for, and what the end of such a run is to its step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evpipe.core.bindings import OutputRef
from evpipe.core.children import end_of_step
from evpipe.core.commands import CancelRun, Decide, Launch, SubmitRun, WakeAt
from evpipe.core.events import CancelCause, CancelRequested, Failure, Finished, StepFailed, StepSucceeded, Submitted
from evpipe.core.graph import Graph
from evpipe.core.lineage import (
    NESTING_MAX,
    RUN_DEPTH_MAX,
    Child,
    Parent,
    check_depth,
    check_parent,
    child_run_id,
    graph_of_child,
)
from evpipe.core.machine import Run
from evpipe.core.retry import RetryPolicy
from evpipe.core.states import OnFailure, Reason, RunIf, RunStatus, StepStatus
from evpipe.errors import LimitExceeded, UsageError
from tests.core.making import RUN_ID, cancel, due, failed, folded, graph, step, submitted, succeeded

INNER = Child(pipeline="inner", digest="a" * 64)
PARENT = Parent(run="parent00", pipeline="outer", step="inner", attempt=2, root="root0000", depth=3)


def child(*steps: object, parent: Parent = PARENT, **options: object) -> Submitted:
    """The submit of a run that is attempt 2 of a step."""
    return replace(submitted(graph(*steps, **options)), parent=parent)  # type: ignore[arg-type]


def verdict(run: Run) -> Finished:
    """The end that a run was decided to have."""
    found = run.decisions["", Finished]
    assert isinstance(found, Finished)
    return found


def test_a_step_that_is_a_run_runs_from_the_moment_it_is_asked_for() -> None:
    """No worker and no slot: the run is submitted with the arguments, again by whoever takes over, and then it ends."""
    run = Run(RUN_ID)
    of = graph(step("load"), step("inner", "load", child=INNER), step("after", "inner"))
    assert run.step(submitted(of)) == (Launch("load", 1, {}),)
    submit = SubmitRun("inner", 1, {"load": 5})
    assert run.step(succeeded("load", value=5, at_s=7.0)) == (submit,)
    state = run.steps["inner"]
    assert (state.status, state.started_at_s) == (StepStatus.RUNNING, 7.0)
    assert run.outstanding() == (submit,)
    assert run.submit_again("inner") == submit
    assert run.step(succeeded("inner", value=6)) == (Launch("after", 1, {"inner": 6}),)


def test_a_run_that_fails_is_followed_by_another_one() -> None:
    """A child has an id of its own per attempt; what was refused or cancelled on request is not tried again."""
    of = graph(step("inner", child=INNER, retries=RetryPolicy(count=2, delay_s=5.0, jitter=0.0)))
    run = folded(submitted(of))
    decided, wake = run.step(failed("inner"))
    assert isinstance(decided, Decide)
    assert wake == WakeAt(5.0, "inner", 2)
    assert run.step(due("inner", 2, at_s=5.0)) == (SubmitRun("inner", 2, {}),)
    assert run.steps["inner"].status is StepStatus.RUNNING
    for reason in (Reason.REJECTED, Reason.REQUEST, Reason.OUTPUT):
        run = folded(submitted(of))
        run.step(failed("inner", reason=reason))
        assert (run.steps["inner"].status, run.steps["inner"].attempt) == (StepStatus.FAILED, 1)


@pytest.mark.parametrize("cause", CancelCause)
def test_a_cancel_reaches_the_run_and_waits_for_its_end(cause: CancelCause) -> None:
    """It is asked to end, by whoever takes over again; the step has ended when it says so. A finaliser goes on."""
    of = graph(step("inner", child=INNER), step("final", child=INNER, run_if=RunIf.ALWAYS), step("later", "inner"))
    run = folded(submitted(of))
    commands = run.step(cancel(cause, "enough"))
    assert CancelRun("inner", 1) in commands
    assert [c.event.step for c in commands if isinstance(c, Decide)] == ["later"]  # type: ignore[union-attr]
    assert CancelRun("inner", 1) in run.outstanding()
    assert SubmitRun("final", 1, {}) in run.outstanding()
    assert run.steps["inner"].status is StepStatus.RUNNING

    inner = folded(
        child(step("work"), parent=replace(PARENT, attempt=1)), replace(cancel(cause, "enough"), by_parent=True)
    )
    inner.step(next(c.event for c in inner.outstanding() if isinstance(c, Decide)))
    told = end_of_step(inner, verdict(inner))
    run.step(told)
    assert (run.steps["inner"].status, run.steps["inner"].message) == (StepStatus.CANCELLED, "enough")
    reasons = {CancelCause.REQUEST: Reason.REQUEST, CancelCause.DEADLINE: Reason.DEADLINE}
    assert run.steps["inner"].reason is reasons.get(cause, Reason.UPSTREAM)


def test_a_run_that_ended_just_before_the_cancel_has_its_own_end() -> None:
    run = folded(submitted(graph(step("inner", child=INNER))), cancel())
    run.step(succeeded("inner", value=1))
    assert run.steps["inner"].status is StepStatus.SUCCEEDED
    assert verdict(run).status is RunStatus.CANCELLED


# ---- ends


def test_success_is_the_value() -> None:
    run = folded(child(step("work"), output=OutputRef("work")), succeeded("work", value=[1]))
    assert end_of_step(run, verdict(run)) == StepSucceeded(step="inner", attempt=2, value=[1])


def test_a_failure_names_the_step_that_did_it_once() -> None:
    """However deep it is: the runs between hand the message on."""
    run = folded(child(step("work"), step("other", on_failure=OnFailure.SKIP)), failed("other"), failed("work"))
    told = end_of_step(run, verdict(run))
    assert isinstance(told, StepFailed)
    assert (told.step, told.attempt, told.reason) == ("inner", 2, Reason.ERROR)
    assert told.failure.message == f"ValueError: bad (step 'work' of run {RUN_ID} of pipeline 'demo')"
    assert told.failure.types == ("builtins.ValueError", "builtins.Exception")
    above = folded(child(step("inner", child=INNER)), replace(told, attempt=1))
    again = end_of_step(above, verdict(above))
    assert isinstance(again, StepFailed)
    assert again.failure == told.failure


def test_no_reason_of_a_run_makes_its_step_lost() -> None:
    run = folded(child(step("work")), *(failed("work", k, Reason.LOST) for k in (1, 2, 3, 4)))
    told = end_of_step(run, verdict(run))
    assert isinstance(told, StepFailed)
    assert told.reason is Reason.ERROR


def test_a_cancel_by_somebody_else_is_a_failure() -> None:
    run = folded(child(step("work", run_if=RunIf.ALWAYS)), cancel(message="by hand"), succeeded("work"))
    told = end_of_step(run, verdict(run))
    assert isinstance(told, StepFailed)
    assert (told.reason, told.failure.message) == (Reason.REQUEST, f"its run {RUN_ID} was cancelled: by hand")


@pytest.mark.parametrize(
    ("own_s", "given_s", "due_s", "reason"),
    [(None, 3.0, 3.0, Reason.TIMEOUT), (9.0, 3.0, 3.0, Reason.TIMEOUT), (3.0, 9.0, 3.0, Reason.DEADLINE)],
)
def test_the_time_out_of_the_step_is_a_deadline_of_the_run(
    own_s: float | None, given_s: float, due_s: float, reason: Reason
) -> None:
    run = Run(RUN_ID)
    begun = child(step("work"), parent=replace(PARENT, deadline_s=given_s), deadline_s=own_s)
    assert WakeAt(due_s, None, 0) in run.step(begun)
    (decided,) = run.step(due(None, at_s=due_s))
    assert isinstance(decided, Decide)
    assert isinstance(decided.event, CancelRequested)
    for command in run.step(decided.event):
        if isinstance(command, Decide):
            run.step(command.event)
    told = end_of_step(run, verdict(run))
    assert isinstance(told, StepFailed)
    assert (told.reason, told.failure.message) == (
        reason,
        f"its run {RUN_ID}: the run was not done 3 s after its submit",
    )


def test_what_was_refused_is_told() -> None:
    run = folded(Submitted(graph=None, parameters={}, rejection="no such graph", parent=PARENT))
    assert end_of_step(run, verdict(run)) == StepFailed(
        step="inner",
        attempt=2,
        reason=Reason.REJECTED,
        failure=Failure(message=f"its run {RUN_ID}: no such graph"),
    )


# ---- lineage


def test_ids_are_the_same_for_ever() -> None:
    """They are part of the protocol: whoever takes a run over must come to the same."""
    assert child_run_id("parent00", "inner", 1) == "irtfthazwk3m5lsqrask"
    assert len({child_run_id("a" * 8, name, k) for name in ("x", "x=1", "y") for k in (1, 2)}) == 6


def test_a_run_is_the_attempt_that_it_says_it_is() -> None:
    run = child_run_id(PARENT.run, PARENT.step, PARENT.attempt)
    assert check_parent(PARENT, run) is PARENT
    assert check_parent(None, "whatever") is None
    with pytest.raises(UsageError, match="run whatever is not attempt 2 of step 'inner' of run parent00"):
        check_parent(PARENT, "whatever")
    check_depth(replace(PARENT, depth=RUN_DEPTH_MAX), "inner")
    with pytest.raises(UsageError, match=f"pipeline 'inner' is called {RUN_DEPTH_MAX} runs deep"):
        check_depth(replace(PARENT, depth=RUN_DEPTH_MAX + 1), "inner")


def test_graphs_are_found_from_the_inside() -> None:
    """As variables of a function in a function: what is around is what was around where it was written."""
    around = ("own", "outer", "root")
    assert graph_of_child(Child(pipeline="p", digest="d"), around) == ("d", around)
    assert graph_of_child(Child(pipeline="p", up=0), around) == ("own", ("outer", "root"))
    assert graph_of_child(Child(pipeline="p", up=2), around) == ("root", ())
    with pytest.raises(UsageError, match="its graph is the one 3 levels up, and there are 2"):
        graph_of_child(Child(pipeline="p", up=3), around)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (replace(INNER, pipeline="a b"), "step 's': pipeline name 'a b' is not allowed"),
        (replace(INNER, queue="a b"), "step 's': queue name 'a b' is not allowed"),
        (replace(INNER, up=NESTING_MAX + 1), f"at most {NESTING_MAX} are allowed"),
        (replace(INNER, graph=graph()), "step 's' runs pipeline 'inner', but its graph is that of 'demo'"),
    ],
)
def test_a_child_is_checked_with_its_graph(found: Child, sentence: str) -> None:
    with pytest.raises((UsageError, LimitExceeded)) as caught:
        Graph.of([step("s", child=found)], pipeline="demo")
    assert sentence in str(caught.value)
