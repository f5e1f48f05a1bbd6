"""The one way from a pipeline to what runs it.

`Pipeline.run` needs a controller, a worker and a bus, which are layers above the sdk. So it calls this
hook, which `evpipe/__init__` sets to a function that imports `evpipe.hosting` when it is first needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from evpipe.sdk.result import RunResult

if TYPE_CHECKING:
    from evpipe.sdk.definition import AnyPipeline

Mode: TypeAlias = Literal["bus", "local", "debug"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a run is made; whoever runs it checks them."""

    #: None: as configured.
    mode: Mode | None = None
    #: Makes the submit idempotent: one key, one run.
    key: str | None = None
    #: Seconds to wait for the end of the run; None: no limit.
    timeout_s: float | None = None
    #: Nothing is taken from the cache, and nothing is recorded there.
    no_cache: bool = False
    #: Steps that run even if the cache has their results, which are replaced; True: all of them.
    refresh: bool | Sequence[str] = False
    #: What steps that wait for a person or an event are given, by step: values, or functions that give them.
    answers: Mapping[str, Any] | None = None
    #: Of its steps that have none of their own; None: the pipeline's.
    priority: int | None = None


RunHook: TypeAlias = "Callable[[AnyPipeline[..., Any], Mapping[str, Any], RunOptions], RunResult[Any]]"

#: Runs a pipeline with these values of its parameters, blocks, gives the result.
run_hook: RunHook
