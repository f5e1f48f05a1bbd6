"""What each event does in each state: (what was folded before, event) -> (commands, what changed)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeAlias

import pytest

from evpipe.core.bindings import OutputRef, ParameterRef
from evpipe.core.commands import Command, Decide, Launch, Quarantine, StopAttempt, WakeAt
from evpipe.core.events import CancelCause, Event, Failure, Finished, StepFailed, Submitted
from evpipe.core.graph import Graph
from evpipe.core.machine import Run
from evpipe.core.parameters import Parameter
from evpipe.core.retry import LOST_MAX, RetryPolicy
from evpipe.core.run_state import RunState
from evpipe.core.states import OnFailure, Reason, RunStatus, StepStatus
from tests.core.making import (
    RUN_ID,
    cancel,
    cancelled,
    due,
    failed,
    finished,
    folded,
    graph,
    lost,
    retried,
    skipped,
    snapshot,
    started,
    step,
    step_snapshot,
    submitted,
    succeeded,
    without_clock,
)

#: What changed, by step and then by attribute; the run's own attributes are under "".
Changes: TypeAlias = dict[str, dict[str, Any]]

PENDING, QUEUED, RUNNING = StepStatus.PENDING, StepStatus.QUEUED, StepStatus.RUNNING
SUCCEEDED, FAILED, SKIPPED, CANCELLED = (
    StepStatus.SUCCEEDED,
    StepStatus.FAILED,
    StepStatus.SKIPPED,
    StepStatus.CANCELLED,
)

CHAIN = graph(step("a"), step("b", "a"), output=OutputRef("b"))
RETRIES = RetryPolicy(count=2, delay_s=10.0, factor=3.0, jitter=0.0, on=("builtins.ValueError",))
RETRYING = graph(step("a", retries=RETRIES), step("b", "a"), output=OutputRef("b"))
AT_ONCE = graph(step("a", retries=RetryPolicy(count=1, delay_s=0.0)))
FAIL_FAST = graph(step("a"), step("b"), step("c", "b"), fail_fast=True)
DEADLINE = graph(step("a"), step("b", "a"), deadline_s=30.0)
NO_KEY = graph(step("a"), step("b", arguments={"x": OutputRef("a", ("k",))}, retries=RETRIES), step("c", "b"))
BOOM = failed("a").failure
BAD_KEY = Failure(message="the output a has no 'k': it has keys 'j'")
REQUEST = {"reason": Reason.REQUEST, "message": "enough"}


def changes(before: dict[str, Any], after: dict[str, Any]) -> Changes:
    """The attributes in which two snapshots differ, less bookkeeping that the tables would only repeat."""
    found: Changes = {}
    for name, state in after["steps"].items():
        old = before["steps"].get(name) or {}
        differ = {key: value for key, value in state.items() if key not in old or old[key] != value}
        if differ and old:
            found[name] = differ
    own = ("status", "reason", "message", "value", "failed", "cancel")
    differ = {key: after[key] for key in own if before[key] != after[key]}
    if differ:
        found[""] = differ
    return found


def given(of: Graph, *events: Event) -> Run:
    return folded(submitted(of), *events)


Case: TypeAlias = tuple[Graph, tuple[Event, ...], Event, tuple[Command, ...], Changes]

APPLIED: dict[str, Case] = {
    # ---- one attempt
    "started": (CHAIN, (), started("a", at_s=2.0), (), {"a": {"status": RUNNING, "started_at_s": 2.0, "worker": "w1"}}),
    "succeeded while queued": (
        CHAIN,
        (),
        succeeded("a", value=7, at_s=2.0),
        (Launch("b", 1, {"a": 7}),),
        {"a": {"status": SUCCEEDED, "ended_at_s": 2.0}, "b": {"status": QUEUED, "attempt": 1, "queued_at_s": 2.0}},
    ),
    "succeeded while running": (
        CHAIN,
        (started("a", at_s=1.0),),
        succeeded("a", value=7, at_s=2.0),
        (Launch("b", 1, {"a": 7}),),
        {"a": {"status": SUCCEEDED, "ended_at_s": 2.0}, "b": {"status": QUEUED, "attempt": 1, "queued_at_s": 2.0}},
    ),
    "the last one succeeded": (
        CHAIN,
        (succeeded("a"),),
        succeeded("b", value=[1], at_s=2.0),
        (Decide(Finished(status=RunStatus.SUCCEEDED, value=[1])),),
        {"b": {"status": SUCCEEDED, "ended_at_s": 2.0}},
    ),
    # ---- failures
    "failed for good": (
        CHAIN,
        (),
        failed("a", at_s=2.0),
        (Decide(skipped("b", "step 'a' failed")),),
        {
            "a": {
                "status": FAILED,
                "ended_at_s": 2.0,
                "reason": Reason.ERROR,
                "message": "ValueError: bad",
                "failure": BOOM,
            },
            "": {"failed": ["a"]},
        },
    ),
    "timed out for good": (
        CHAIN,
        (succeeded("a"),),
        failed("b", reason=Reason.TIMEOUT, at_s=2.0),
        (
            Decide(
                Finished(status=RunStatus.FAILED, reason=Reason.TIMEOUT, message="step 'b' failed: timeout"),
            ),
        ),
        {
            "b": {
                "status": FAILED,
                "ended_at_s": 2.0,
                "reason": Reason.TIMEOUT,
                "message": "timeout",
                "failure": Failure(message="timeout"),
            },
            "": {"failed": ["b"]},
        },
    ),
    "failed, on_failure skip": (
        graph(step("a", on_failure=OnFailure.SKIP), step("b", "a"), step("c", "b")),
        (),
        failed("a"),
        (Decide(skipped("b", "step 'a' failed")), Decide(skipped("c", "step 'b' was skipped"))),
        {
            "a": {
                "status": FAILED,
                "ended_at_s": 0.0,
                "reason": Reason.ERROR,
                "message": "ValueError: bad",
                "failure": BOOM,
            }
        },
    ),
    "failed, on_failure continue": (
        graph(step("a", on_failure=OnFailure.CONTINUE), step("b", "a", arguments={"k": OutputRef("a", ("k", 0))})),
        (),
        failed("a"),
        (Launch("b", 1, {"a": None, "k": None}),),
        {
            "a": {
                "status": FAILED,
                "ended_at_s": 0.0,
                "reason": Reason.ERROR,
                "message": "ValueError: bad",
                "failure": BOOM,
            },
            "b": {"status": QUEUED, "attempt": 1, "queued_at_s": 0.0},
        },
    ),
    "skipped": (
        CHAIN,
        (failed("a"),),
        skipped("b", "step 'a' failed", at_s=3.0),
        (
            Decide(
                Finished(status=RunStatus.FAILED, reason=Reason.ERROR, message="step 'a' failed: ValueError: bad"),
            ),
        ),
        {"b": {"status": SKIPPED, "reason": Reason.UPSTREAM, "message": "step 'a' failed", "ended_at_s": 3.0}},
    ),
    "several failed": (
        graph(step("a"), step("b")),
        (failed("b", message="first"),),
        failed("a", at_s=2.0, reason=Reason.OUTPUT),
        (
            Decide(
                Finished(status=RunStatus.FAILED, reason=Reason.ERROR, message="step 'b' failed: first (and 1 more)"),
            ),
        ),
        {
            "a": {
                "status": FAILED,
                "ended_at_s": 2.0,
                "reason": Reason.OUTPUT,
                "message": "output",
                "failure": Failure(message="output"),
            },
            "": {"failed": ["b", "a"]},
        },
    ),
    # ---- retries
    "failed and is retried after a delay": (
        RETRYING,
        (started("a", at_s=1.0),),
        failed("a", at_s=2.0),
        (Decide(retried("a", 2, 12.0)), WakeAt(12.0, "a", 2)),
        {
            "a": {
                "status": PENDING,
                "attempt": 2,
                "failures": 1,
                "due_at_s": 12.0,
                "started_at_s": None,
                "reason": Reason.ERROR,
                "message": "ValueError: bad",
                "failure": BOOM,
            }
        },
    ),
    "the delay grows": (
        RETRYING,
        (failed("a"), due("a", 2, at_s=10.0)),
        failed("a", 2, at_s=11.0),
        (Decide(retried("a", 3, 41.0)), WakeAt(41.0, "a", 3)),
        {"a": {"status": PENDING, "attempt": 3, "failures": 2, "due_at_s": 41.0}},
    ),
    "the retries are used up": (
        RETRYING,
        (failed("a"), due("a", 2), failed("a", 2), due("a", 3)),
        failed("a", 3, at_s=50.0),
        (Decide(skipped("b", "step 'a' failed")),),
        {"a": {"status": FAILED, "ended_at_s": 50.0}, "": {"failed": ["a"]}},
    ),
    "a base of the exception is retried": (
        RETRYING,
        (),
        failed("a", types=("m.Mine", "builtins.ValueError"), at_s=2.0),
        (Decide(retried("a", 2, 12.0)), WakeAt(12.0, "a", 2)),
        {
            "a": {
                "status": PENDING,
                "attempt": 2,
                "failures": 1,
                "due_at_s": 12.0,
                "reason": Reason.ERROR,
                "message": "ValueError: bad",
                "failure": Failure(message="ValueError: bad", types=("m.Mine", "builtins.ValueError")),
            }
        },
    ),
    "another exception is not": (
        RETRYING,
        (),
        failed("a", types=("builtins.KeyError",), message="k"),
        (Decide(skipped("b", "step 'a' failed")),),
        {
            "a": {
                "status": FAILED,
                "ended_at_s": 0.0,
                "reason": Reason.ERROR,
                "message": "k",
                "failure": Failure(message="k", types=("builtins.KeyError",)),
            },
            "": {"failed": ["a"]},
        },
    ),
    "a wrong output is never retried": (
        AT_ONCE,
        (),
        failed("a", reason=Reason.OUTPUT),
        (Decide(Finished(status=RunStatus.FAILED, reason=Reason.OUTPUT, message="step 'a' failed: output")),),
        {
            "a": {
                "status": FAILED,
                "ended_at_s": 0.0,
                "reason": Reason.OUTPUT,
                "message": "output",
                "failure": Failure(message="output"),
            },
            "": {"failed": ["a"]},
        },
    ),
    "a retry without delay is launched at once": (
        AT_ONCE,
        (started("a"),),
        failed("a", reason=Reason.TIMEOUT, at_s=2.0),
        (Decide(retried("a", 2, 2.0)), Launch("a", 2, {})),
        {
            "a": {
                "status": QUEUED,
                "attempt": 2,
                "failures": 1,
                "started_at_s": None,
                "reason": Reason.TIMEOUT,
                "message": "timeout",
                "failure": Failure(message="timeout"),
            }
        },
    ),
    "the wait is over": (
        RETRYING,
        (failed("a"),),
        due("a", 2, at_s=10.0),
        (Launch("a", 2, {}),),
        {"a": {"status": QUEUED, "due_at_s": None}},
    ),
    "the wait is over before the decision is in the log": (
        RETRYING,
        (failed("a"), retried("a", 2, 10.0)),
        due("a", 2, at_s=10.0),
        (Launch("a", 2, {}),),
        {"a": {"status": QUEUED, "due_at_s": None}},
    ),
    "a retry succeeds and keeps nothing of the failure": (
        RETRYING,
        (failed("a"), due("a", 2)),
        succeeded("a", 2, at_s=11.0),
        (Launch("b", 1, {"a": None}),),
        {
            "a": {"status": SUCCEEDED, "ended_at_s": 11.0, "reason": None, "message": "", "failure": None},
            "b": {"status": QUEUED, "attempt": 1, "queued_at_s": 11.0},
        },
    ),
    # ---- lost
    "lost while running": (
        CHAIN,
        (started("a", at_s=1.0),),
        lost("a", at_s=2.0),
        (StopAttempt("a", 1), Launch("a", 2, {})),
        {
            "a": {
                "status": QUEUED,
                "attempt": 2,
                "losses": 1,
                "started_at_s": None,
                "reason": Reason.LOST,
                "message": "lost",
                "failure": Failure(message="lost"),
            }
        },
    ),
    "lost too often": (
        CHAIN,
        tuple(lost("a", k) for k in range(1, LOST_MAX + 1)),
        lost("a", LOST_MAX + 1, at_s=9.0),
        (Decide(skipped("b", "step 'a' failed")),),
        {"a": {"status": FAILED, "ended_at_s": 9.0}, "": {"failed": ["a"]}},
    ),
    "a loss is not charged to the retries": (
        AT_ONCE,
        (lost("a", 1), lost("a", 2), lost("a", 3)),
        failed("a", 4),
        (Decide(retried("a", 5, 0.0)), Launch("a", 5, {})),
        {
            "a": {
                "attempt": 5,
                "failures": 1,
                "reason": Reason.ERROR,
                "message": "ValueError: bad",
                "failure": BOOM,
            }
        },
    ),
    # ---- arguments and outputs that cannot be made
    "arguments that cannot be made": (
        NO_KEY,
        (),
        succeeded("a", value={"j": 1}, at_s=2.0),
        (Decide(StepFailed(step="b", attempt=1, reason=Reason.OUTPUT, failure=BAD_KEY)),),
        {"a": {"status": SUCCEEDED, "ended_at_s": 2.0}, "b": {"attempt": 1, "queued_at_s": 2.0}},
    ),
    "the failure for them": (
        NO_KEY,
        (succeeded("a", value={"j": 1}),),
        StepFailed(at_s=3.0, step="b", attempt=1, reason=Reason.OUTPUT, failure=BAD_KEY),
        (Decide(skipped("c", "step 'b' failed")),),
        {
            "b": {
                "status": FAILED,
                "ended_at_s": 3.0,
                "reason": Reason.OUTPUT,
                "message": BAD_KEY.message,
                "failure": BAD_KEY,
            },
            "": {"failed": ["b"]},
        },
    ),
    "any other failure instead of it": (
        NO_KEY,
        (succeeded("a", value={"j": 1}),),
        failed("b", at_s=3.0),
        (Decide(skipped("c", "step 'b' failed")),),
        {
            "b": {
                "status": FAILED,
                "ended_at_s": 3.0,
                "reason": Reason.ERROR,
                "message": "ValueError: bad",
                "failure": BOOM,
            },
            "": {"failed": ["b"]},
        },
    ),
    "the run's value cannot be made": (
        graph(step("a"), output=OutputRef("a", (2,))),
        (),
        succeeded("a", value=[1, 2]),
        (
            Decide(
                Finished(
                    status=RunStatus.FAILED,
                    reason=Reason.OUTPUT,
                    message="the pipeline's output: the output a has no 2: it has length 2",
                )
            ),
        ),
        {"a": {"status": SUCCEEDED, "ended_at_s": 0.0}},
    ),
    # ---- the end before its time
    "cancelled by request": (
        CHAIN,
        (started("a"),),
        cancel(message="enough", at_s=2.0),
        (
            StopAttempt("a", 1),
            Decide(cancelled("a", 1, message="enough")),
            Decide(cancelled("b", 0, message="enough")),
        ),
        {"": {"cancel": cancel(message="enough", at_s=2.0)}},
    ),
    "cancelled while it waits for a retry": (
        RETRYING,
        (failed("a"),),
        cancel(CancelCause.DEADLINE),
        (Decide(cancelled("a", 0, Reason.DEADLINE)), Decide(cancelled("b", 0, Reason.DEADLINE))),
        {"": {"cancel": cancel(CancelCause.DEADLINE)}},
    ),
    "cancelled when a part is to be skipped": (
        graph(step("a"), step("b", "a"), step("c")),
        (failed("a"),),
        cancel(),
        (StopAttempt("c", 1), Decide(cancelled("c", 1))),
        {"": {"cancel": cancel()}},
    ),
    "a step was cancelled": (
        CHAIN,
        (cancel(message="enough"),),
        cancelled("a", 1, message="enough", at_s=3.0),
        (),
        {"a": {"status": CANCELLED, "ended_at_s": 3.0, **REQUEST}},
    ),
    "the last step was cancelled": (
        CHAIN,
        (cancel(message="enough"), cancelled("a", 1)),
        cancelled("b", message="enough", at_s=3.0),
        (Decide(Finished(status=RunStatus.CANCELLED, reason=Reason.REQUEST, message="enough")),),
        {"b": {"status": CANCELLED, "ended_at_s": 3.0, **REQUEST}},
    ),
    "a result that comes before the cancellation of its step counts": (
        CHAIN,
        (cancel(message="enough"),),
        succeeded("a", value=1, at_s=3.0),
        (),
        {"a": {"status": SUCCEEDED, "ended_at_s": 3.0}},
    ),
    "a failure after the cancel is neither retried nor does it skip": (
        RETRYING,
        (cancel(),),
        failed("a", at_s=3.0),
        (),
        {
            "a": {
                "status": FAILED,
                "ended_at_s": 3.0,
                "reason": Reason.ERROR,
                "message": "ValueError: bad",
                "failure": BOOM,
            },
            "": {"failed": ["a"]},
        },
    ),
    "a loss after the cancel is the end of the step": (
        CHAIN,
        (cancel(),),
        lost("a", at_s=3.0),
        (),
        {
            "a": {
                "status": FAILED,
                "ended_at_s": 3.0,
                "reason": Reason.LOST,
                "message": "lost",
                "failure": Failure(message="lost"),
            },
            "": {"failed": ["a"]},
        },
    ),
    "fail_fast": (
        FAIL_FAST,
        (),
        failed("a"),
        (Decide(cancel(CancelCause.FAIL_FAST, "step 'a' failed and fail_fast is set")),),
        {
            "a": {
                "status": FAILED,
                "ended_at_s": 0.0,
                "reason": Reason.ERROR,
                "message": "ValueError: bad",
                "failure": BOOM,
            },
            "": {"failed": ["a"]},
        },
    ),
    "fail_fast holds back what becomes ready before the cancel is in the log": (
        FAIL_FAST,
        (failed("a"),),
        succeeded("b"),
        (),
        {"b": {"status": SUCCEEDED, "ended_at_s": 0.0}},
    ),
    "fail_fast asks for the end of the others": (
        FAIL_FAST,
        (failed("a"),),
        cancel(CancelCause.FAIL_FAST, "m"),
        (
            StopAttempt("b", 1),
            Decide(cancelled("b", 1, Reason.UPSTREAM, "m")),
            Decide(cancelled("c", 0, Reason.UPSTREAM, "m")),
        ),
        {"": {"cancel": cancel(CancelCause.FAIL_FAST, "m")}},
    ),
    "fail_fast and nothing is left": (
        graph(step("a"), fail_fast=True),
        (),
        failed("a", message="x"),
        (Decide(Finished(status=RunStatus.FAILED, reason=Reason.ERROR, message="step 'a' failed: x")),),
        {
            "a": {
                "status": FAILED,
                "ended_at_s": 0.0,
                "reason": Reason.ERROR,
                "message": "x",
                "failure": failed("a", message="x").failure,
            },
            "": {"failed": ["a"]},
        },
    ),
    "fail_fast does not mean a failure that the pipeline allows": (
        graph(step("a", on_failure=OnFailure.SKIP), step("b"), fail_fast=True),
        (),
        failed("a"),
        (),
        {
            "a": {
                "status": FAILED,
                "ended_at_s": 0.0,
                "reason": Reason.ERROR,
                "message": "ValueError: bad",
                "failure": BOOM,
            }
        },
    ),
    "the deadline": (
        DEADLINE,
        (),
        due(None, at_s=30.0),
        (Decide(cancel(CancelCause.DEADLINE, "the run was not done 30 s after its submit")),),
        {},
    ),
    "the end of a run that passed its deadline": (
        DEADLINE,
        (due(None), cancel(CancelCause.DEADLINE, "late"), cancelled("a", 1, Reason.DEADLINE, "late")),
        cancelled("b", 0, Reason.DEADLINE, "late", at_s=31.0),
        (Decide(Finished(status=RunStatus.FAILED, reason=Reason.DEADLINE, message="late")),),
        {"b": {"status": CANCELLED, "ended_at_s": 31.0, "reason": Reason.DEADLINE, "message": "late"}},
    ),
    # ---- the end
    "finished": (
        CHAIN,
        (succeeded("a"), succeeded("b", value=5)),
        finished(value=5),
        (),
        {"": {"status": RunStatus.SUCCEEDED, "value": 5}},
    ),
    "finished, and the value was too large for the event": (
        CHAIN,
        (succeeded("a"), succeeded("b", value=5)),
        finished(),
        (),
        {"": {"status": RunStatus.SUCCEEDED, "value": 5}},
    ),
    "finished, whatever this fold thinks": (
        CHAIN,
        (),
        finished(RunStatus.FAILED, reason=Reason.ERROR, message="m"),
        (),
        {"": {"status": RunStatus.FAILED, "reason": Reason.ERROR, "message": "m"}},
    ),
}

DONE = (succeeded("a"), succeeded("b", value=5))

#: Events that come too late: repeated, of an older attempt, after an end. They give nothing and change nothing.
OVERTAKEN: dict[str, tuple[Graph, tuple[Event, ...], Event]] = {
    "submitted twice": (CHAIN, (), submitted(graph(step("z")))),
    "started twice": (CHAIN, (started("a"),), started("a")),
    "started after its end": (CHAIN, (succeeded("a"),), started("a")),
    "succeeded twice": (CHAIN, (succeeded("a", value=1),), succeeded("a", value=2)),
    "succeeded after it failed": (CHAIN, (failed("a"),), succeeded("a")),
    "failed after it succeeded": (CHAIN, (succeeded("a"),), failed("a")),
    "lost after it succeeded": (CHAIN, (succeeded("a"),), lost("a")),
    "failed twice, waiting": (RETRYING, (failed("a"),), failed("a")),
    "failed twice, retried": (RETRYING, (failed("a"), due("a", 2)), failed("a")),
    "lost twice": (CHAIN, (lost("a"),), lost("a")),
    "a lost attempt succeeds": (CHAIN, (lost("a"),), succeeded("a", 1)),
    "a lost attempt starts": (CHAIN, (lost("a"),), started("a", 1)),
    "retry in the log": (RETRYING, (failed("a"), retried("a", 2, 10.0)), retried("a", 2, 10.0)),
    "retry of an older attempt": (RETRYING, (failed("a"), due("a", 2), failed("a", 2)), retried("a", 2, 10.0)),
    "due twice": (RETRYING, (failed("a"), due("a", 2)), due("a", 2)),
    "due for another attempt": (RETRYING, (failed("a"),), due("a", 3)),
    "due without a wait": (CHAIN, (), due("a", 1)),
    "due after the cancel": (RETRYING, (failed("a"), cancel()), due("a", 2)),
    "skipped twice": (CHAIN, (failed("a"), skipped("b")), skipped("b")),
    "skipped after its cancellation": (
        graph(step("a"), step("b", "a"), step("c")),
        (failed("a"), cancel(), cancelled("b")),
        skipped("b"),
    ),
    "cancelled twice": (CHAIN, (cancel(), cancelled("a", 1)), cancelled("a", 1)),
    "cancelled after it succeeded": (CHAIN, (cancel(), succeeded("a")), cancelled("a", 1)),
    "cancel requested twice": (CHAIN, (cancel(message="one"),), cancel(CancelCause.DEADLINE, "two")),
    "cancel requested when all is done": (CHAIN, DONE, cancel()),
    "the deadline is due twice": (DEADLINE, (due(None),), due(None)),
    "the deadline after the cancel": (DEADLINE, (cancel(),), due(None)),
    "the deadline when all is done": (DEADLINE, DONE, due(None)),
    "the deadline when fail_fast was decided": (
        graph(step("a"), step("b"), fail_fast=True, deadline_s=1.0),
        (failed("a"),),
        due(None),
    ),
    "arguments could not be made, but the cancel came first": (
        NO_KEY,
        (succeeded("a", value={"j": 1}), cancel()),
        StepFailed(step="b", attempt=1, reason=Reason.OUTPUT, failure=BAD_KEY),
    ),
    "finished twice": (CHAIN, (*DONE, finished(value=5)), finished(RunStatus.FAILED)),
    **{
        f"{type(event).__name__} after the end": (CHAIN, (*DONE, finished(value=5)), event)
        for event in (
            submitted(CHAIN),
            started("a"),
            succeeded("a"),
            failed("nobody"),
            retried("a", 2, 1.0),
            skipped("a"),
            cancelled("a"),
            due(None),
            cancel(),
        )
    },
}

#: Events that cannot be, and the reason that is given. They change nothing.
IMPOSSIBLE: dict[str, tuple[Graph, tuple[Event, ...], Event, str]] = {
    **{
        f"{type(event).__name__} of an unknown step": (CHAIN, (), event, "the graph has no step 'z'")
        for event in (
            started("z"),
            succeeded("z"),
            failed("z"),
            retried("z", 2, 1.0),
            skipped("z"),
            cancelled("z"),
            due("z", 1),
        )
    },
    **{
        f"{type(event).__name__} of a step that was not launched": (
            CHAIN,
            (),
            event,
            f"{type(event).__name__} of attempt 1 of 'b', which was not launched",
        )
        for event in (started("b"), succeeded("b"), failed("b"))
    },
    **{
        f"{type(event).__name__} of a later attempt": (
            CHAIN,
            (),
            event,
            f"{type(event).__name__} of attempt 2 of 'a', which was not launched",
        )
        for event in (started("a", 2), succeeded("a", 2), failed("a", 2), lost("a", 2))
    },
    "succeeded while it waits for a retry": (
        RETRYING,
        (failed("a"),),
        succeeded("a", 2),
        "StepSucceeded of attempt 2 of 'a', which was not launched",
    ),
    "succeeded though its arguments cannot be made": (
        NO_KEY,
        (succeeded("a", value={"j": 1}),),
        succeeded("b"),
        "StepSucceeded of attempt 1 of 'b', which was not launched",
    ),
    "skipped for nothing": (CHAIN, (), skipped("b"), "step 'b' was skipped, but nothing before it failed"),
    "cancelled for nothing": (CHAIN, (), cancelled("a", 1), "step 'a' was cancelled, but nobody asked for it"),
    "a deadline that is not there": (CHAIN, (), due(None), "the run's deadline is due, but it has none"),
    "finished as running": (CHAIN, (), finished(RunStatus.RUNNING), "a run cannot finish as running"),
}


@pytest.mark.parametrize(("of", "before", "event", "commands", "changed"), APPLIED.values(), ids=APPLIED.keys())
def test_an_event_that_counts_gives_its_commands_and_changes_what_it_says(
    of: Graph, before: tuple[Event, ...], event: Event, commands: tuple[Command, ...], changed: Changes
) -> None:
    run = given(of, *before)
    was = snapshot(run)
    assert run.step(event) == commands
    assert changes(was, snapshot(run)) == changed


@pytest.mark.parametrize(("of", "before", "event"), OVERTAKEN.values(), ids=OVERTAKEN.keys())
def test_an_overtaken_event_gives_nothing_and_changes_nothing(
    of: Graph, before: tuple[Event, ...], event: Event
) -> None:
    run = given(of, *before)
    was = snapshot(run)
    assert run.step(event) == ()
    assert snapshot(run) == was


@pytest.mark.parametrize(("of", "before", "event", "reason"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_an_impossible_event_is_quarantined_and_changes_nothing(
    of: Graph, before: tuple[Event, ...], event: Event, reason: str
) -> None:
    run = given(of, *before)
    was = snapshot(run)
    assert run.step(event) == (Quarantine(reason),)
    assert snapshot(run) == was


@pytest.mark.parametrize(
    "event",
    [
        started("a"),
        succeeded("a"),
        failed("a"),
        retried("a", 2, 1.0),
        skipped("a"),
        cancelled("a"),
        due(None),
        cancel(),
        finished(),
    ],
    ids=lambda event: type(event).__name__,
)
def test_nothing_counts_before_the_submit(event: Event) -> None:
    run = folded()
    was = snapshot(run)
    assert run.step(event) == (Quarantine(f"{type(event).__name__} before the run was submitted"),)
    assert snapshot(run) == was
    assert run.outstanding() == ()


# ---- the submit


def test_a_submit_launches_the_roots_in_order_and_sets_the_deadline() -> None:
    of = graph(step("b"), step("a"), step("c", "a"), deadline_s=9.0)
    run = Run(RUN_ID)
    assert run.step(submitted(of, at_s=100.0)) == (Launch("b", 1, {}), Launch("a", 1, {}), WakeAt(109.0, None, 0))
    assert run.status is RunStatus.RUNNING
    assert step_snapshot(run.steps["b"])["queued_at_s"] == 100.0
    assert run.steps["c"].status is PENDING


def test_an_empty_pipeline_succeeds_at_once() -> None:
    run = Run(RUN_ID)
    decision = Decide(Finished(status=RunStatus.SUCCEEDED, value=["constant"]))
    assert run.step(submitted(graph(output=["constant"]))) == (decision,)
    run.step(decision.event)
    assert (run.status, run.value) == (RunStatus.SUCCEEDED, ["constant"])


def test_a_rejected_submit_fails_the_run_and_nothing_else_counts() -> None:
    run = Run(RUN_ID)
    decision = Decide(Finished(status=RunStatus.FAILED, reason=Reason.REJECTED, message="no such graph"))
    assert run.step(Submitted(graph=None, parameters={}, rejection="no such graph")) == (decision,)
    assert run.outstanding() == (decision,)
    assert run.step(cancel()) == ()
    assert run.step(started("a")) == (Quarantine("the graph has no step 'a'"),)
    run.step(decision.event)
    assert (run.status, run.reason, run.message) == (RunStatus.FAILED, Reason.REJECTED, "no such graph")


def test_a_submit_without_a_value_for_a_parameter_fails_the_step_that_needs_it() -> None:
    """The shell checks parameters before the fold; a fold that got them otherwise must not raise."""
    of = graph(step("a", arguments={"n": ParameterRef("n")}), parameters=(Parameter(name="n"),))
    failure = Failure(message="the run has no value for the parameter 'n'")
    expected = StepFailed(step="a", attempt=1, reason=Reason.OUTPUT, failure=failure)
    assert Run(RUN_ID).step(submitted(of)) == (Decide(expected),)
    assert Run(RUN_ID).step(submitted(of, n=3)) == (Launch("a", 1, {"n": 3}),)


# ---- time


def test_the_clock_is_the_largest_timestamp_that_the_log_has_shown() -> None:
    run = given(RETRYING, started("a", at_s=50.0))
    assert run.step(failed("a", at_s=20.0))[-1] == WakeAt(60.0, "a", 2)
    assert run.at_s == 50.0


def test_an_impossible_event_does_not_move_the_clock() -> None:
    run = given(CHAIN)
    run.step(started("z", at_s=1e12))
    assert run.at_s == 0.0


def test_the_jitter_of_a_delay_is_the_same_in_every_fold_and_another_in_every_run() -> None:
    of = graph(step("a", retries=RetryPolicy(count=1, delay_s=100.0, jitter=0.5)))
    delays = set()
    for run_id in ("run00001", "run00001", "run00002"):
        run = Run(run_id)
        run.step(submitted(of))
        run.step(failed("a"))
        delays.add(run.steps["a"].due_at_s)
    assert len(delays) == 2
    assert all(delay is not None and 50.0 <= delay <= 150.0 for delay in delays)


def test_a_worker_tells_when_the_body_began_where_no_started_event_did() -> None:
    run = given(CHAIN, replace(succeeded("a", at_s=9.0), started_at_s=8.5))
    assert run.steps["a"].started_at_s == 8.5
    run = given(CHAIN, started("a", at_s=8.0), replace(succeeded("a", at_s=9.0), started_at_s=8.5))
    assert run.steps["a"].started_at_s == 8.0


# ---- what a controller that takes over has to do

OUTSTANDING: dict[str, tuple[Graph, tuple[Event, ...], tuple[Command, ...]]] = {
    "attempts under way": (
        graph(step("a"), step("b"), step("c", "a")),
        (started("a"),),
        (Launch("a", 1, {}), Launch("b", 1, {})),
    ),
    "arguments are made again": (CHAIN, (succeeded("a", value=7),), (Launch("b", 1, {"a": 7}),)),
    "a wait, its decision and the deadline": (
        graph(step("a", retries=RETRIES), deadline_s=99.0),
        (failed("a"),),
        (Decide(retried("a", 2, 10.0)), WakeAt(10.0, "a", 2), WakeAt(99.0, None, 0)),
    ),
    "a wait of which the decision is in the log": (
        RETRYING,
        (failed("a"), retried("a", 2, 10.0)),
        (WakeAt(10.0, "a", 2),),
    ),
    "skips that are not in the log": (
        graph(step("a"), step("b", "a"), step("c", "b")),
        (failed("a"), skipped("c", "step 'b' was skipped")),
        (Decide(skipped("b", "step 'a' failed")),),
    ),
    "a cancel that is half done": (
        CHAIN,
        (cancel(message="m"), cancelled("b", message="m")),
        (Decide(cancelled("a", 1, message="m")), StopAttempt("a", 1)),
    ),
    "a cancel that a result overtook": (
        CHAIN,
        (cancel(message="m"), succeeded("a")),
        (Decide(cancelled("b", 0, message="m")),),
    ),
    "the end": (CHAIN, DONE, (Decide(Finished(status=RunStatus.SUCCEEDED, value=5)),)),
    "nothing after the end": (CHAIN, (*DONE, finished()), ()),
}


@pytest.mark.parametrize(("of", "before", "commands"), OUTSTANDING.values(), ids=OUTSTANDING.keys())
def test_what_is_outstanding(of: Graph, before: tuple[Event, ...], commands: tuple[Command, ...]) -> None:
    run = given(of, *before)
    was = snapshot(run)
    assert run.outstanding() == commands
    assert snapshot(run) == was


def test_the_snapshot_of_these_tests_shows_all_that_a_run_holds() -> None:
    assert set(snapshot(Run(RUN_ID))) == {"waiting_on"} | set(RunState.__slots__) - {"_readiness", "_specs"}
    assert set(without_clock(snapshot(Run(RUN_ID)))) | {"at_s"} == set(snapshot(Run(RUN_ID)))
