"""Short ways to write graphs, events and runs, and to look at all of a run's state."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from evpipe.core.bindings import OutputRef, Tree
from evpipe.core.events import (
    CancelCause,
    CancelRequested,
    Due,
    Event,
    Failure,
    Finished,
    StepApproved,
    StepCancelled,
    StepFailed,
    StepReceived,
    StepRetried,
    StepSkipped,
    StepStarted,
    StepSucceeded,
    Submitted,
)
from evpipe.core.graph import Graph, Step
from evpipe.core.machine import Run
from evpipe.core.run_state import RunState, StepState
from evpipe.core.states import Reason, RunStatus

RUN_ID = "run00001"


def step(name: str, *parents: str, arguments: Mapping[str, Tree] | None = None, **options: Any) -> Step:
    """A step that takes the whole output of each parent, under the parent's name."""
    return Step(name=name, arguments={**{p: OutputRef(p) for p in parents}, **(arguments or {})}, **options)


def graph(*steps: Step, **options: Any) -> Graph:
    return Graph.of(steps, **{"pipeline": "demo", **options})


def submitted(of: Graph, at_s: float = 0.0, **parameters: Any) -> Submitted:
    return Submitted(at_s=at_s, graph=of, parameters=parameters)


def started(name: str, attempt: int = 1, at_s: float = 0.0) -> StepStarted:
    return StepStarted(at_s=at_s, step=name, attempt=attempt, worker="w1")


def succeeded(name: str, attempt: int = 1, value: Any = None, at_s: float = 0.0) -> StepSucceeded:
    return StepSucceeded(at_s=at_s, step=name, attempt=attempt, value=value)


def failed(
    name: str,
    attempt: int = 1,
    reason: Reason = Reason.ERROR,
    at_s: float = 0.0,
    message: str = "ValueError: bad",
    types: tuple[str, ...] = ("builtins.ValueError", "builtins.Exception"),
) -> StepFailed:
    if reason is not Reason.ERROR:
        message, types = reason.value, ()
    return StepFailed(
        at_s=at_s, step=name, attempt=attempt, reason=reason, failure=Failure(message=message, types=types)
    )


def lost(name: str, attempt: int = 1, at_s: float = 0.0) -> StepFailed:
    return failed(name, attempt, Reason.LOST, at_s)


def retried(name: str, attempt: int, due_at_s: float, at_s: float = 0.0) -> StepRetried:
    return StepRetried(at_s=at_s, step=name, attempt=attempt, due_at_s=due_at_s)


def skipped(name: str, message: str = "", at_s: float = 0.0) -> StepSkipped:
    return StepSkipped(at_s=at_s, step=name, message=message)


def skipped_itself(name: str, attempt: int = 1, message: str = "not today", at_s: float = 0.0) -> StepSkipped:
    return StepSkipped(at_s=at_s, step=name, attempt=attempt, reason=Reason.CONDITION, message=message)


def cancelled(
    name: str, attempt: int = 0, reason: Reason = Reason.REQUEST, message: str = "", at_s: float = 0.0
) -> StepCancelled:
    return StepCancelled(at_s=at_s, step=name, attempt=attempt, reason=reason, message=message)


def approved(name: str, answer: Any = True, by: str = "ann", message: str = "", at_s: float = 0.0) -> StepApproved:
    return StepApproved(at_s=at_s, step=name, answer=answer, by=by, message=message)


def received(name: str, value: Any = None, at_s: float = 0.0) -> StepReceived:
    return StepReceived(at_s=at_s, step=name, value=value)


def cancel(cause: CancelCause = CancelCause.REQUEST, message: str = "", at_s: float = 0.0) -> CancelRequested:
    return CancelRequested(at_s=at_s, cause=cause, message=message)


def due(name: str | None, attempt: int = 0, at_s: float = 0.0) -> Due:
    return Due(at_s=at_s, step=name, attempt=attempt)


def finished(status: RunStatus = RunStatus.SUCCEEDED, at_s: float = 0.0, **rest: Any) -> Finished:
    return Finished(at_s=at_s, status=status, **rest)


def folded(*events: Event) -> Run:
    """A run into which these events were folded."""
    run = Run(RUN_ID)
    for event in events:
        run.step(event)
    return run


#: The name under which `snapshot` keeps each attribute of a run.
_SHOWN = {"_readiness": "waiting_on"}


def snapshot(run: Run) -> dict[str, Any]:
    """Everything that a run holds, by attribute; nothing in it changes when the run goes on."""
    found: dict[str, Any] = {}
    for slot in RunState.__slots__:
        value = getattr(run, slot)
        if slot == "_specs":
            continue  # of the graph
        if slot == "_readiness":
            value = dict(value.waiting_on) if value is not None else {}
        elif slot == "steps":
            value = {name: step_snapshot(state) for name, state in value.items()}
        elif slot == "decisions":
            value = dict(value)
        elif slot == "expansions":
            value = {name: repr(expansion) for name, expansion in value.items()}
        elif slot in ("failed", "outputs", "parameters", "answers", "began"):
            value = copy.copy(value)
        found[_SHOWN.get(slot, slot)] = value
    return found


def step_snapshot(state: StepState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in fields(state)}


def without_clock(found: dict[str, Any]) -> dict[str, Any]:
    """A snapshot less the log's clock, which any event that is in the log may move."""
    return {key: value for key, value in found.items() if key != "at_s"}
