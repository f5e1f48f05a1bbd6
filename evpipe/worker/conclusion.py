"""How an attempt ended, as the event that the log will have.

It is made where the step ran, so that a worker hands on what a child made without looking into a user's values.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from evpipe.core.events import Failure, StepFailed, StepSkipped
from evpipe.core.names import for_people
from evpipe.core.states import Reason
from evpipe.errors import EncodingError, EvpipeError
from evpipe.sdk.skip import SkipStep
from evpipe.wire.messages import LaunchOrder, encode_event, encode_succeeded
from evpipe.wire.serializers.registry import ArtifactUnreadable
from evpipe.wire.storing import encode_stored
from evpipe.wire.subjects import LaunchSubject
from evpipe.worker.attempt_files import AttemptFiles
from evpipe.worker.code import CodeNotFound
from evpipe.worker.failures import failure_of, text_of
from evpipe.worker.outputs import OutputMismatch, shape_output

#: Kinds of events that tell the end of an attempt.
KINDS: Final = frozenset({"succeeded", "failed", "skipped"})


class Conclusion(NamedTuple):
    """The end of an attempt."""

    #: Of the event: one of `KINDS`.
    kind: str
    payload: bytes
    #: Whether files in the attempt's folder have to be stored before it is told.
    has_artifacts: bool = False


def conclude_value(
    launch: LaunchSubject, order: LaunchOrder, value: Any, started_at_s: float, files: AttemptFiles
) -> Conclusion:
    """Make the end of an attempt whose body returned; raises nothing but MemoryError.

    Args:
        files: take what does not travel in the event.

    A value that has not the declared outputs, or that cannot travel, is a failure with the reason `output`.
    """
    try:
        shaped = shape_output(value, order.outputs, for_people(launch.step))
        packed = encode_stored(shaped, f"the output of step {for_people(launch.step)!r}", files.writer(order))
    except (OutputMismatch, EvpipeError) as error:
        message = str(error)
        if isinstance(error, EncodingError) and order.pickle and not files.allow_pickle:
            message += "; the step may pickle, but its worker does not allow it: evpipe worker --allow-pickle"
        # What a serializer of the user's raised.
        below = failure_of(error.__cause__).traceback if isinstance(error.__cause__, Exception) else ""
        return conclude_failure(launch, Failure(message=message, traceback=below), started_at_s, Reason.OUTPUT)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a full disk; or code of users, in a class or a serializer
        message = f"the output of step {for_people(launch.step)!r} cannot be stored: {type(error).__name__}: {error}"
        return conclude_failure(launch, Failure(message=message), started_at_s, Reason.OUTPUT)
    payload = encode_succeeded(launch.attempt, started_at_s, packed)
    return Conclusion("succeeded", payload, files.wrote)


def conclude_error(launch: LaunchSubject, error: BaseException, started_at_s: float) -> Conclusion:
    """Make the end of an attempt whose body raised, or could not be called."""
    if isinstance(error, SkipStep):
        return _conclude_skip(launch, error, started_at_s)
    if isinstance(error, ArtifactUnreadable):
        # Its arguments cannot be made, and another attempt would not find them either.
        return conclude_failure(launch, Failure(message=str(error)), started_at_s, Reason.OUTPUT)
    if isinstance(error, CodeNotFound):
        failure = Failure(message=str(error), types=("evpipe.worker.code.CodeNotFound",))
    else:
        failure = failure_of(error)
    return conclude_failure(launch, failure, started_at_s)


def _conclude_skip(launch: LaunchSubject, error: SkipStep, started_at_s: float) -> Conclusion:
    event = StepSkipped(
        step=launch.step,
        attempt=launch.attempt,
        reason=Reason.CONDITION,
        message=text_of(error) or "its body raised SkipStep",
        started_at_s=started_at_s,
    )
    _, kind, payload = encode_event(event)
    return Conclusion(kind, payload)


def conclude_failure(
    launch: LaunchSubject, failure: Failure, started_at_s: float = 0.0, reason: Reason = Reason.ERROR
) -> Conclusion:
    """Make the end of an attempt that failed."""
    event = StepFailed(
        step=launch.step, attempt=launch.attempt, reason=reason, failure=failure, started_at_s=started_at_s
    )
    _, kind, payload = encode_event(event)
    return Conclusion(kind, payload)
