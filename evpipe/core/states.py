"""The states of steps and runs, and the one table of what may follow what.

The tables are the source of the state diagrams in the docs (a test compares them) and
the machine asserts against it, so a transition that is not here cannot happen.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class StepStatus(StrEnum):
    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    #: Its result was taken from the cache; counts as succeeded everywhere.
    CACHED = "cached"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


class RunStatus(StrEnum):
    SUBMITTED = "submitted"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Reason(StrEnum):
    """Why something failed, was skipped or was cancelled."""

    #: The step raised, or its worker could not run it.
    ERROR = "error"
    #: An attempt ran longer than `timeout_s`.
    TIMEOUT = "timeout"
    #: The run was not done `deadline_s` after its submit.
    DEADLINE = "deadline"
    #: The worker of an attempt is gone.
    LOST = "lost"
    #: A step before it failed or was skipped.
    UPSTREAM = "upstream"
    #: The submitted run does not validate; or a person's answer to an approval that fails by it was no.
    REJECTED = "rejected"
    #: An output is missing, is not what was declared, or cannot be stored.
    OUTPUT = "output"
    #: Somebody asked for it.
    REQUEST = "request"
    #: Its `when` was false, its `run_if` did not hold, or its body raised `SkipStep`.
    CONDITION = "condition"


class RunIf(StrEnum):
    """What the ends of the steps before a step must be for it to run. All of them are waited for."""

    #: Each has a value, or its failure is allowed (`on_failure="continue"`).
    ALL_SUCCEEDED = "all_succeeded"
    #: Whatever their ends are.
    ALL_DONE = "all_done"
    ANY_SUCCEEDED = "any_succeeded"
    ANY_FAILED = "any_failed"
    #: None failed, was skipped for a failure before it, or was cancelled.
    NONE_FAILED = "none_failed"
    ALL_FAILED = "all_failed"
    #: Whatever their ends are, and also when the run is cancelled: a finaliser.
    ALWAYS = "always"


class OnFailure(StrEnum):
    """What a step's final failure means for the rest of its run."""

    #: Dependents are skipped and the run fails.
    FAIL = "fail"
    #: Dependents are skipped, the run may still succeed.
    SKIP = "skip"
    #: Dependents run and get None, the run may still succeed.
    CONTINUE = "continue"


_P, _Q, _R = StepStatus.PENDING, StepStatus.QUEUED, StepStatus.RUNNING
#: States in which a step has a value.
STEP_VALUES = frozenset({StepStatus.SUCCEEDED, StepStatus.CACHED})
_ENDS = STEP_VALUES | {StepStatus.FAILED, StepStatus.SKIPPED, StepStatus.CANCELLED}

STEP_TRANSITIONS: dict[StepStatus, frozenset[StepStatus]] = {
    # At once to running: a wait, which nobody takes up.
    _P: frozenset({_Q, _R, StepStatus.SKIPPED, StepStatus.CANCELLED, StepStatus.FAILED}),
    _Q: frozenset({_R, _P, *STEP_VALUES, StepStatus.FAILED, StepStatus.SKIPPED, StepStatus.CANCELLED}),
    _R: frozenset({_Q, _P, *STEP_VALUES, StepStatus.FAILED, StepStatus.SKIPPED, StepStatus.CANCELLED}),
    **{end: frozenset() for end in StepStatus if end in _ENDS},
}

RUN_TRANSITIONS: dict[RunStatus, frozenset[RunStatus]] = {
    RunStatus.SUBMITTED: frozenset({RunStatus.RUNNING, RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED}),
    RunStatus.RUNNING: frozenset({RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED}),
    RunStatus.SUCCEEDED: frozenset(),
    RunStatus.FAILED: frozenset(),
    RunStatus.CANCELLED: frozenset(),
}

STEP_ENDS = _ENDS
RUN_ENDS = frozenset({RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED})


def diagram() -> str:
    """Both tables as Mermaid state diagrams."""
    lines: list[str] = []
    tables: tuple[tuple[str, Mapping[Any, frozenset[Any]]], ...] = (
        ("step", STEP_TRANSITIONS),
        ("run", RUN_TRANSITIONS),
    )
    for title, table in tables:
        lines += [f"%% {title}", "stateDiagram-v2"]
        lines += [f"    {a} --> {b}" for a in table for b in sorted(table[a])]
        lines += [f"    {a} --> [*]" for a in table if not table[a]]
    return "\n".join(lines)
