"""What a run and the runs that its steps are say to each other: the submit of a child, and its end as its step's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evpipe.core.artifact import LENGTHS_MAX
from evpipe.core.children import EndOfStep
from evpipe.core.events import Failure, StepFailed, StepSucceeded
from evpipe.core.graph import Step
from evpipe.core.lineage import Parent, graph_of_child
from evpipe.core.machine import Run
from evpipe.core.names import for_people
from evpipe.core.states import Reason
from evpipe.errors import UsageError
from evpipe.wire.artifacts import ArtifactWriter
from evpipe.wire.limits import LARGE_ITEMS_MAX, PART_BYTES_MAX
from evpipe.wire.messages import Submission, encode_event, encode_submission, encode_succeeded
from evpipe.wire.storing import encode_stored, store_encoded
from evpipe.wire.values import pack


def submission_of_child(
    submission: Submission, step: Step, *, run: str, pipeline: str, name: str, attempt: int
) -> Submission:
    """Make the submit of the run that an attempt is, without its parameters.

    What the submit of the run around it says of the whole run, it says of this one.

    Args:
        submission: of the run around it, which has `run` and `pipeline`.
        step: its definition.
        name: the step's name in that run.

    Raises:
        UsageError: if there is no such graph.
    """
    assert step.child is not None, "only of steps that are pipelines"
    digest, enclosing = graph_of_child(step.child, submission.graphs)
    above = submission.parent
    return replace(
        submission,
        graph=digest,
        parameters={},
        queue=submission.queue or step.child.queue,
        priority=step.priority if submission.priority is None else submission.priority,
        refresh=_refreshed(submission.refresh, step.name),
        parent=Parent(
            run=run,
            pipeline=pipeline,
            step=name,
            attempt=attempt,
            root=run if above is None else above.root,
            depth=1 if above is None else above.depth + 1,
            enclosing=enclosing,
            deadline_s=step.timeout_s,
        ),
    )


def _refreshed(refresh: tuple[str, ...], step: str) -> tuple[str, ...]:
    """Give the steps of a child that are refreshed."""
    if "*" in refresh or step in refresh:
        return ("*",)
    return tuple(path.partition("/")[2] for path in refresh if path.startswith(f"{step}/"))


def encode_child(
    submission: Submission, arguments: Mapping[str, Any], what: str, writer: ArtifactWriter | None = None
) -> bytes:
    """Encode the submit of a child.

    Args:
        arguments: values of its parameters.
        what: names the step in messages.
        writer: stores arguments that are too large for a submit; None: that is refused.

    Raises:
        EncodingError, LimitExceeded: as `encode_submission`.
    """
    parameters = dict(arguments)
    if writer is not None:
        for name, value in arguments.items():
            argument = f"argument {name!r} of {what}"
            data = pack(value, argument, items_max=LARGE_ITEMS_MAX)
            if len(data) > PART_BYTES_MAX:
                # All of them are in one submit.
                numbers_max = LENGTHS_MAX // len(arguments)
                parameters[name] = store_encoded(data, value, argument, writer, numbers_max=numbers_max)
    return encode_submission(replace(submission, parameters=parameters))


def refusal_of_child(step: str, attempt: int, error: Exception) -> StepFailed:
    """Give the end of an attempt whose run cannot be submitted."""
    failure = Failure(message=f"the run of step {for_people(step)!r} cannot be submitted: {error}")
    reason = Reason.REJECTED if type(error) is UsageError else Reason.OUTPUT
    return StepFailed(step=step, attempt=attempt, reason=reason, failure=failure)


def unstorable(run: Run, error: Exception) -> StepFailed:
    """Give the end of the step that a run is whose value cannot be stored."""
    assert run.parent is not None, "only of runs that are steps"
    failure = Failure(message=f"the value of run {run.id} cannot be stored: {error}")
    return StepFailed(step=run.parent.step, attempt=run.parent.attempt, reason=Reason.OUTPUT, failure=failure)


def encode_end_of_step(event: EndOfStep, writer: ArtifactWriter) -> tuple[str, bytes]:
    """Encode the end of a step that is a run.

    Args:
        writer: takes what of its value does not travel in the event.

    Returns:
        Kind and payload.

    Raises:
        EncodingError, LimitExceeded: as `encode_stored`.
    """
    if not isinstance(event, StepSucceeded):
        _, kind, payload = encode_event(event)
        return kind, payload
    packed = encode_stored(event.value, f"the output of step {for_people(event.step)!r}", writer)
    return "succeeded", encode_succeeded(event.attempt, event.started_at_s, packed)
