"""Pipelines driven by events, on NATS.

This module hands names on. What a file with a `@step` needs is imported here and is standard library all
the way down; what runs pipelines (`run`, the client, hosting) is imported when its name is first used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evpipe.core.notes import MetricPoint
from evpipe.core.states import RunStatus, StepStatus
from evpipe.errors import (
    AlreadyAnswered,
    BusRefused,
    BusUnreachable,
    CommandFailed,
    Conflict,
    EncodingError,
    EvpipeError,
    LimitExceeded,
    NotFound,
    NotKnownYet,
    NotWaiting,
    ProcessDied,
    RunFailed,
    UsageError,
    WaitTimeout,
)
from evpipe.sdk import hook as _hook
from evpipe.sdk.builder import Pipeline
from evpipe.sdk.cache import Cache
from evpipe.sdk.command import CommandStep, command
from evpipe.sdk.command_outputs import CommandResult
from evpipe.sdk.condition import not_, one_of
from evpipe.sdk.context import StepContext, current
from evpipe.sdk.definition import AnyPipeline as _AnyPipeline
from evpipe.sdk.exits import FailedStep, RunSummary, exit_status
from evpipe.sdk.limits import Mutex, Rate, Semaphore
from evpipe.sdk.mapping import unmapped
from evpipe.sdk.pipeline import PipelineFunction, pipeline
from evpipe.sdk.result import RunResult, StepResult
from evpipe.sdk.retry import Retry
from evpipe.sdk.serializer import serializer
from evpipe.sdk.skip import SkipStep
from evpipe.sdk.step import Step, step
from evpipe.sdk.waits import approval, sleep, wait_for_event

if TYPE_CHECKING:
    from evpipe.client.client import Client, connect
    from evpipe.client.events import RunEvent
    from evpipe.client.waiting import WaitingStep
    from evpipe.controller.controller import Controller
    from evpipe.core.why import Cause, Why
    from evpipe.hosting.run import run
    from evpipe.worker.worker import Worker

__all__ = [
    "AlreadyAnswered",
    "BusRefused",
    "BusUnreachable",
    "Cache",
    "Cause",
    "Client",
    "CommandFailed",
    "CommandResult",
    "CommandStep",
    "Conflict",
    "Controller",
    "EncodingError",
    "EvpipeError",
    "FailedStep",
    "LimitExceeded",
    "MetricPoint",
    "Mutex",
    "NotFound",
    "NotKnownYet",
    "NotWaiting",
    "Pipeline",
    "PipelineFunction",
    "ProcessDied",
    "Rate",
    "Retry",
    "RunEvent",
    "RunFailed",
    "RunResult",
    "RunStatus",
    "RunSummary",
    "Semaphore",
    "SkipStep",
    "Step",
    "StepContext",
    "StepResult",
    "StepStatus",
    "UsageError",
    "WaitTimeout",
    "WaitingStep",
    "Why",
    "Worker",
    "approval",
    "command",
    "connect",
    "current",
    "exit_status",
    "not_",
    "one_of",
    "pipeline",
    "run",
    "serializer",
    "sleep",
    "step",
    "unmapped",
    "wait_for_event",
]

_LAZY = {
    "Client": "evpipe.client.client",
    "RunEvent": "evpipe.client.events",
    "WaitingStep": "evpipe.client.waiting",
    "Controller": "evpipe.controller.controller",
    "Cause": "evpipe.core.why",
    "Why": "evpipe.core.why",
    "Worker": "evpipe.worker.worker",
    "connect": "evpipe.client.client",
    "run": "evpipe.hosting.run",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _run(target: _AnyPipeline[..., Any], values: Mapping[str, Any], options: _hook.RunOptions) -> RunResult[Any]:
    from evpipe.hosting.run import run

    result: RunResult[Any] = run(
        target,
        dict(values),
        mode=options.mode,
        key=options.key,
        timeout_s=options.timeout_s,
        no_cache=options.no_cache,
        refresh=options.refresh,
        answers=options.answers,
        priority=options.priority,
    )
    return result


_hook.run_hook = _run
