"""What the machine asks of the shell. Imperative: what to do.

The order that the shell must keep:

- A command comes from an event that *is in the log*. Nothing is published for an event that is not.
- Every command may be repeated: a launch by its subject (run, step, attempt), a decision by the
  expected last sequence of its subject, a wake-up by the `Due` event that it becomes, a stop because
  it is best effort. So after a crash the log is replayed, the commands of the replay are dropped, and
  `Run.outstanding()` gives all that may be undone; publishing what was already there changes nothing.
- What ends a run that is a step of another goes into the log of that one first: the step's end, until it is answered,
  then `Finished`. A controller that dies between the two leaves a run that has not finished, and whoever takes it over
  does both again.
- A run that is a step is cancelled in its own log, after its submit (which is sent again first) was answered there. Its
  end is the step's: so no run outlives the one that it is a step of.
- The commands of one event may be carried out in any order and at the same time, but a launch that was
  not sent yet when a `CancelRequested` is folded must not be sent any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from evpipe.core.events import Decision


@dataclass(frozen=True, slots=True)
class Launch:
    """Publish an attempt to the step's queue; of a step that is cached, after a look into the cache.

    What the cache says is no function of the log: a hit counts when `StepCached` is in it. A miss needs no event, for
    whoever looks again finds the marker of this very step, and launches it (or finds its result, which is as good).
    """

    step: str
    attempt: int
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SubmitRun:
    """Submit the run that an attempt is, under the id that `child_run_id` gives."""

    step: str
    attempt: int
    #: Values of its parameters.
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CancelRun:
    """Ask for the end of the run that an attempt is. The step has ended when that run says so."""

    step: str
    attempt: int


@dataclass(frozen=True, slots=True)
class StopAttempt:
    """Tell whoever runs this attempt that its result does not count any more."""

    step: str
    attempt: int


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Publish `Due(step, attempt)` when the log's clock shows `at_s`."""

    at_s: float
    step: str | None
    attempt: int


@dataclass(frozen=True, slots=True)
class Await:
    """Look out for what a step waits for, from the moment on at which it began to (or its run's submit).

    An event that matches is put into the log as `StepReceived`; an answer of a person comes by itself.
    """

    step: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Decide:
    """Put this event into the log."""

    event: Decision


@dataclass(frozen=True, slots=True)
class Quarantine:
    """The event makes no sense here; it was not applied."""

    reason: str


Command: TypeAlias = Launch | SubmitRun | CancelRun | StopAttempt | WakeAt | Await | Decide | Quarantine
