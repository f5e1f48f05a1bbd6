"""`on_exit` handlers: steps that begin when all others have ended, and are told how the run ended.

@step
def tell(run: RunSummary) -> None: ...

@pipeline(on_exit=[tell, page.options(when=exit_status != "succeeded")])
def churn() -> None: ...
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypedDict, cast

from evpipe.core.bindings import OutputRef
from evpipe.core.exits import RUN
from evpipe.core.graph import Step as GraphStep
from evpipe.core.names import nearest
from evpipe.core.states import OnFailure, RunIf
from evpipe.errors import UsageError
from evpipe.sdk.build import Build
from evpipe.sdk.functions import check_step_function
from evpipe.sdk.handle import ExitHandle
from evpipe.sdk.step import Step, make_step


class FailedStep(TypedDict):
    """A step that failed its run."""

    step: str
    #: As `StepResult.reason`.
    reason: str
    message: str
    #: Number of its last attempt.
    attempts: int


class RunSummary(TypedDict):
    """What an `on_exit` handler is told of its run."""

    #: The run's id.
    run: str
    pipeline: str
    parameters: dict[str, Any]
    #: "succeeded", "failed" or "cancelled": the end that the run will have.
    status: str
    #: Why, unless it succeeded: a `Reason`, and one line.
    reason: str | None
    message: str
    #: The steps that failed it, the first to fail first; at most 100, `failed_count` is their number.
    failed: list[FailedStep]
    failed_count: int
    #: Seconds from the submit to the end of the last step before the handlers.
    duration_s: float


#: The end that the run will have, in the condition of a handler: `when=exit_status == "failed"`.
exit_status: Final = cast("str", ExitHandle(OutputRef(RUN, ("status",))))
_KEYS: Final = tuple(RunSummary.__annotations__)
_SUMMARY: Final = ExitHandle(OutputRef(RUN))


def check_handlers(given: object, pipeline: str) -> tuple[Step[..., Any], ...]:
    """Read the option `on_exit` of a pipeline: a step, or a list of steps.

    Raises:
        UsageError: if one is none, or cannot be a handler.
    """
    where = f"pipeline {pipeline!r}: on_exit"
    if given is None:
        return ()
    handlers = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    return tuple(_checked(handler, where) for handler in handlers)


def handler_steps(handlers: Sequence[Step[..., Any]], build: Build, taken: Mapping[str, GraphStep]) -> list[GraphStep]:
    """Give the steps of the graph for the handlers of a pipeline.

    Args:
        taken: the steps that the graph has already; the names of handlers differ from theirs.
    """
    added = Build(build.pipeline, build.queue)
    added.steps.update(taken)
    for handler in handlers:
        parts = {p.name: ExitHandle(OutputRef(RUN, (p.name,))) for p in _by_name(handler) if p.name in _KEYS}
        handler._add_to(added, (_SUMMARY,) if _takes_summary(handler) else (), parts)
    found = list(added.steps.values())[len(taken) :]
    made = zip(found, handlers, strict=True)
    # A handler tells of a run: that it could not does not make the run a failed one, unless it says so.
    return [
        replace(step, on_exit=True, run_if=RunIf.ALWAYS, on_failure=handler._options.on_failure or OnFailure.SKIP)
        for step, handler in made
    ]


def _checked(given: Any, where: str) -> Step[..., Any]:
    if isinstance(given, Step):
        handler = given
    elif callable(given) and not isinstance(given, type):
        function = check_step_function(given, f"{where} cannot have")
        handler = make_step(function, function.__name__, {})
    else:
        raise UsageError(f"{where} takes a step or a list of steps, not {given!r}")
    options = handler._options
    if options.after:
        raise UsageError(f"{where}: {handler!r} cannot have after=…, a handler begins when all steps have ended")
    if options.run_if not in {RunIf.ALL_SUCCEEDED, RunIf.ALWAYS}:
        raise UsageError(
            f"{where}: {handler!r} cannot have run_if={options.run_if.value!r}, a handler begins however its run ends: "
            'use when=exit_status != "succeeded" or such'
        )
    required = [p.name for p in _parameters(handler) if p.default is p.empty]
    if len(required) > 1:
        raise UsageError(
            f"{where}: {handler!r} takes {', '.join(required)}: a handler is given one argument, what is known of the "
            "run (a RunSummary), or none"
        )
    unknown = [p.name for p in _by_name(handler) if p.default is p.empty and p.name not in _KEYS]
    if unknown:
        raise UsageError(
            f"{where}: {handler!r} takes {unknown[0]!r} by name, and what is known of a run is {', '.join(_KEYS)}"
            f"{nearest(unknown[0], _KEYS)}"
        )
    return handler


def _by_name(handler: Step[..., Any]) -> list[inspect.Parameter]:
    """Give what is only taken by name: keyword-only parameters, and a command's placeholders."""
    return [p for p in handler._signature.parameters.values() if p.kind is p.KEYWORD_ONLY]


def _takes_summary(handler: Step[..., Any]) -> bool:
    return bool(_parameters(handler))


def _parameters(handler: Step[..., Any]) -> list[inspect.Parameter]:
    found = handler._signature.parameters.values()
    return [p for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
