"""Results: what a folded log shows of a run, and the error that a missing value is."""

from datetime import UTC, datetime

import pytest

from evpipe import RunFailed, RunResult, RunStatus, StepStatus
from evpipe.core.bindings import OutputRef
from evpipe.core.commands import Decide
from evpipe.core.events import (
    CancelRequested,
    Event,
    Failure,
    StepFailed,
    StepStarted,
    StepSucceeded,
    Submitted,
)
from evpipe.core.graph import Graph, Step
from evpipe.core.machine import Run
from evpipe.core.retry import RetryPolicy
from evpipe.core.states import Reason

GRAPH = Graph.of(
    [
        Step(name="load", retries=RetryPolicy(count=1, delay_s=0.0)),
        Step(name="train", arguments={"data": OutputRef("load")}),
    ],
    pipeline="churn",
    output=OutputRef("train"),
)
FAILURE = Failure(message="ValueError: no such file", traceback="Traceback (most recent call last):\n  here\n")


def folded(*events: Event) -> Run:
    """Fold a log and every decision that follows from it."""
    run = Run("r1")
    pending: list[Event] = [Submitted(at_s=10.0, graph=GRAPH, parameters={}), *events]
    while pending:
        commands = run.step(pending.pop(0))
        pending = [command.event for command in commands if isinstance(command, Decide)] + pending
    return run


def failed(attempt: int) -> StepFailed:
    return StepFailed(at_s=12.0, step="load", attempt=attempt, failure=FAILURE)


def test_a_run_that_succeeded_has_its_value_and_no_error() -> None:
    """A failure that a retry made good is not shown as an error of the step."""
    run = folded(
        failed(1),
        StepStarted(at_s=13.0, step="load", attempt=2),
        StepSucceeded(at_s=14.0, step="load", attempt=2, value=[1]),
        StepSucceeded(at_s=15.5, step="train", attempt=1, value=7, started_at_s=15.25),
    )
    result = RunResult.of(run)
    assert (result.id, result.status, result.value, result.error, result.reason) == ("r1", "succeeded", 7, "", None)
    load, train = result.steps.values()
    assert (load.status, load.value, load.attempts, load.error, load.reason) == ("succeeded", [1], 2, "", None)
    assert (load.traceback, load.queued_at) == ("", datetime.fromtimestamp(10, UTC))
    assert (train.started_at, train.ended_at) == (datetime.fromtimestamp(15.25, UTC), datetime.fromtimestamp(15.5, UTC))
    assert isinstance(result.status, RunStatus)
    assert isinstance(load.status, StepStatus)
    assert repr(result) == "<run r1 of pipeline 'churn': succeeded, 2 of 2 steps>"
    assert repr(load) == "<step 'load': succeeded after 2 attempts>"


def test_a_run_that_failed_names_step_attempt_and_traceback() -> None:
    """A script that asks for the value ends with all that is needed to find the cause."""
    result = RunResult.of(folded(failed(1), failed(2)))
    with pytest.raises(RunFailed) as caught:
        _ = result.value
    error = caught.value
    assert str(error) == (
        "run r1 of pipeline 'churn' failed: step 'load' failed: ValueError: no such file (attempt 2)\n\n"
        "Traceback (most recent call last):\n  here"
    )
    assert (error.run_id, error.status, error.step, error.attempt) == ("r1", "failed", "load", 2)
    assert error.traceback == FAILURE.traceback
    assert repr(result) == (
        "<run r1 of pipeline 'churn': failed, 0 of 2 steps, step 'load' failed: ValueError: no such file>"
    )


def test_a_step_without_a_value_says_why() -> None:
    """Skipped, failed or not there yet: the sentence is the step's own."""
    steps = RunResult.of(folded(failed(1), failed(2))).steps
    for name, sentence in (
        ("load", "step 'load' of run r1 has no value: it is failed (error): ValueError: no such file"),
        ("train", "step 'train' of run r1 has no value: it is skipped (upstream): step 'load' failed"),
    ):
        with pytest.raises(RunFailed) as caught:
            _ = steps[name].value
        assert str(caught.value) == sentence
        assert (caught.value.status, caught.value.step) == ("failed", name)
    assert (steps["load"].reason, steps["load"].error) == (Reason.ERROR, "ValueError: no such file")
    assert steps["train"].attempts == 0


def test_a_run_that_goes_on_or_was_cancelled_has_no_value() -> None:
    """Every state but succeeded is an error for who wants the value."""
    for run, sentence in (
        (Run("r1"), "run r1 has no value yet: it is submitted"),
        (folded(), "run r1 of pipeline 'churn' has no value yet: it is running"),
        (folded(CancelRequested()), "run r1 of pipeline 'churn' was cancelled"),
        (folded(CancelRequested(message="by ann")), "run r1 of pipeline 'churn' cancelled: by ann"),
    ):
        with pytest.raises(RunFailed) as caught:
            _ = RunResult.of(run).value
        assert str(caught.value) == sentence
