"""The facts in a run's log. Past tense: what happened.

`at_s` is the log's own timestamp (seconds since 1970, the server's clock); it is 0.0 in an event that is
not in the log yet, that is inside a `Decide` command. The comment beside each class says who writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from evpipe.core.graph import Graph
from evpipe.core.lineage import Parent
from evpipe.core.notes import Notes
from evpipe.core.states import Reason, RunStatus


class CancelCause(StrEnum):
    """Who asked for the end of a run before its time."""

    REQUEST = "request"
    DEADLINE = "deadline"
    FAIL_FAST = "fail_fast"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What is known of a failed attempt."""

    #: One line: "ValueError: no such file".
    message: str
    #: Names ("module.Class") of the exception's class and its bases, nearest first; empty if none was raised.
    types: tuple[str, ...] = ()
    #: The formatted traceback, cut to a limit; may be empty.
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:  # client
    at_s: float = 0.0
    #: None if it could not be had: then `rejection` says why.
    graph: Graph | None
    parameters: Mapping[str, Any]
    #: The sentence that refuses the run, or "".
    rejection: str = ""
    #: The step of another run that this one is; None: it is nobody's.
    parent: Parent | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested:  # client, controller
    at_s: float = 0.0
    cause: CancelCause = CancelCause.REQUEST
    message: str = ""
    #: It comes from the run that this one is a step of, which has been cancelled.
    by_parent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:  # controller
    """A wait is over: the delay before an attempt, a sleep, the time of a wait, or (step None) the run's deadline."""

    at_s: float = 0.0
    step: str | None
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:  # controller
    at_s: float = 0.0
    status: RunStatus
    reason: Reason | None = None
    message: str = ""
    value: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted:  # worker; of a wait the controller, for whoever wants to know: the fold knew before
    at_s: float = 0.0
    step: str
    attempt: int
    worker: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSucceeded:  # worker; controller, of a step that is a run
    at_s: float = 0.0
    step: str
    attempt: int
    value: Any = None
    #: When the body began, by the worker's clock; 0.0 if not told.
    started_at_s: float = 0.0
    #: What it recorded beside its output; None: nothing.
    notes: Notes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The attempt whose result the cache gave."""

    pipeline: str
    run: str
    step: str
    #: When it was recorded, by the bus's clock.
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCached:  # controller
    """The cache has the result of a step with the same fingerprint; an attempt that runs is superseded."""

    at_s: float = 0.0
    step: str
    #: The attempt that would have been launched.
    attempt: int
    value: Any = None
    fingerprint: str = ""
    origin: Origin
    #: What the attempt whose result it is recorded beside it.
    notes: Notes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepApproved:  # client
    """Somebody answered an approval; also if the answer is no."""

    at_s: float = 0.0
    step: str
    answer: Any
    #: Who.
    by: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReceived:  # controller
    """The event that a step waited for has come."""

    at_s: float = 0.0
    step: str
    #: Of a signal its payload, of a run's event what is known of it.
    value: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailed:  # worker; controller, of a step that cannot be launched at all, or is a run
    at_s: float = 0.0
    step: str
    attempt: int
    reason: Reason = Reason.ERROR
    failure: Failure
    started_at_s: float = 0.0
    notes: Notes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRetried:  # controller
    """It was decided that `attempt` follows a failed one, at `due_at_s` by the log's clock."""

    at_s: float = 0.0
    step: str
    attempt: int
    due_at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSkipped:  # controller, of a step that is not launched; worker, of an attempt that skipped its step
    """The step is left out: for what became of the steps before it, or because its own body said so.

    What a body says is the end of its attempt, as `StepSucceeded` is. It has this kind, and is no failure with a mark
    on it: who subscribes to failures is told of none, and a step that is left out is so in one way, whoever decided.
    """

    at_s: float = 0.0
    step: str
    #: The attempt that it ends; 0: there was none.
    attempt: int = 0
    #: Of an attempt always `condition`.
    reason: Reason = Reason.UPSTREAM
    message: str = ""
    started_at_s: float = 0.0
    notes: Notes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCancelled:  # controller
    at_s: float = 0.0
    step: str
    #: The attempt that it ends; 0 if there was none.
    attempt: int = 0
    reason: Reason = Reason.REQUEST
    message: str = ""


Event: TypeAlias = (
    Submitted
    | CancelRequested
    | Due
    | Finished
    | StepStarted
    | StepSucceeded
    | StepCached
    | StepApproved
    | StepReceived
    | StepFailed
    | StepRetried
    | StepSkipped
    | StepCancelled
)

#: The events that a controller decides on.
Decision: TypeAlias = (
    CancelRequested
    | Due
    | Finished
    | StepStarted
    | StepCached
    | StepReceived
    | StepFailed
    | StepRetried
    | StepSkipped
    | StepCancelled
)
