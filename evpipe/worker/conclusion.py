"""How an attempt ended, as the event that the log will have.

It is made where the step ran, so that a worker hands on what a child made without looking into a user's values.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from evpipe.core.events import Failure, StepFailed, StepSucceeded
from evpipe.core.states import Reason
from evpipe.errors import EvpipeError
from evpipe.wire.messages import LaunchOrder, encode_event
from evpipe.wire.subjects import LaunchSubject
from evpipe.worker.code import CodeNotFound
from evpipe.worker.failures import failure_of
from evpipe.worker.outputs import OutputMismatch, shape_output


class Conclusion(NamedTuple):
    """The end of an attempt."""

    #: Of the event: "succeeded" or "failed".
    kind: str
    payload: bytes


def conclude_value(launch: LaunchSubject, order: LaunchOrder, value: Any, started_at_s: float) -> Conclusion:
    """Make the end of an attempt whose body returned; never raises.

    A value that has not the declared outputs, or that cannot travel, is a failure with the reason `output`.
    """
    try:
        shaped = shape_output(value, order.outputs, launch.step)
        event = StepSucceeded(step=launch.step, attempt=launch.attempt, value=shaped, started_at_s=started_at_s)
        _, kind, payload = encode_event(event)
    except (OutputMismatch, EvpipeError) as error:
        return conclude_failure(launch, Failure(message=str(error)), started_at_s, Reason.OUTPUT)
    return Conclusion(kind, payload)


def conclude_error(launch: LaunchSubject, error: BaseException, started_at_s: float) -> Conclusion:
    """Make the end of an attempt whose body raised, or could not be called."""
    if isinstance(error, CodeNotFound):
        failure = Failure(message=str(error), types=("evpipe.worker.code.CodeNotFound",))
    else:
        failure = failure_of(error)
    return conclude_failure(launch, failure, started_at_s)


def conclude_failure(
    launch: LaunchSubject, failure: Failure, started_at_s: float = 0.0, reason: Reason = Reason.ERROR
) -> Conclusion:
    """Make the end of an attempt that failed."""
    event = StepFailed(
        step=launch.step, attempt=launch.attempt, reason=reason, failure=failure, started_at_s=started_at_s
    )
    _, kind, payload = encode_event(event)
    return Conclusion(kind, payload)
