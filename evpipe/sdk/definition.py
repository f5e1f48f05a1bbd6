"""What every pipeline is, however it was written: a name, options, parameters, and a graph for their values.

`@pipeline` (`pipeline.py`) and `Pipeline` (`builder.py`) differ in where the graph comes from; whoever runs or
submits one needs no more than this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, TypeVar

from evpipe.core.bindings import Tree
from evpipe.core.graph import Graph, Step
from evpipe.core.names import check_name
from evpipe.core.parameters import Parameter, check_parameters
from evpipe.errors import UsageError
from evpipe.sdk import hook
from evpipe.sdk.build import Build
from evpipe.sdk.exits import handler_steps
from evpipe.sdk.hook import Mode, RunOptions
from evpipe.sdk.result import RunResult
from evpipe.sdk.step import Step as AnyStep

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

QUEUE_DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Built:
    """A pipeline's graph for values of its parameters."""

    graph: Graph
    #: One entry per parameter of the pipeline, with the defaults filled in.
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineOptions:
    """Checked options of a pipeline."""

    version: str
    #: Of the steps that name none.
    queue: str
    fail_fast: bool
    deadline_s: float | None
    #: What begins when all steps have ended.
    on_exit: tuple[AnyStep[..., Any], ...]
    priority: int
    description: str

    def check(self, name: str) -> None:
        """Refuse options that are not allowed; `name` is the pipeline's."""
        check_name(f"pipeline {name!r}: queue", self.queue)
        # An empty graph with the same options: what is wrong with them is said here, in the sentences of the core.
        Graph(pipeline=name, version=self.version, deadline_s=self.deadline_s, priority=self.priority)


class AnyPipeline(ABC, Generic[P, R_co]):
    """A pipeline that is called with `P` and whose runs have a value of type `R_co`."""

    def __init__(self, name: str, options: PipelineOptions, module: str) -> None:
        options.check(name)
        self.name = name
        #: Name of the module in which it was written.
        self.module = module
        self._options = options

    @property
    def version(self) -> str:
        return self._options.version

    @property
    @abstractmethod
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters, in order."""

    @abstractmethod
    def build(self, values: Mapping[str, Any]) -> Built:
        """Give the graph for these values of the parameters; those with a default may be left out.

        Raises:
            UsageError: if the values or the graph are wrong.

        """

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Mapping[str, Any]:
        """Give the value of every parameter for a call with these arguments.

        Raises:
            UsageError: if one is unknown (the nearest name is suggested), missing, there twice or of the wrong type.

        """
        by_position = self._by_position()
        if len(args) > len(by_position):
            raise UsageError(f"pipeline {self.name!r} takes {len(by_position)} by position, and {len(args)} were given")
        given = dict(zip(by_position, args, strict=False))
        for name, value in kwargs.items():
            if name in given:
                raise UsageError(f"pipeline {self.name!r} got two values for the parameter {name!r}")
            given[name] = value
        return check_parameters(self.parameters, given, of=self.name)

    def run(self, *args: P.args, **kwargs: P.kwargs) -> RunResult[R_co]:
        """Run the pipeline and wait for its end.

        Raises:
            UsageError: if the arguments or the graph are wrong.

        """
        return self.options().run(*args, **kwargs)

    def options(
        self,
        *,
        mode: Mode | None = None,
        key: str | None = None,
        timeout_s: float | None = None,
        no_cache: bool = False,
        refresh: bool | Sequence[str] = False,
        answers: Mapping[str, Any] | None = None,
        priority: int | None = None,
    ) -> PipelineRun[P, R_co]:
        """Say how to run it, as in `churn.options(mode="local").run(rows=500)`.

        Args:
            mode: what runs it; None: as configured.
            key: with the same key, graph and parameters there is only one run.
            timeout_s: seconds to wait for the end; the run itself goes on after them.
            no_cache: take nothing from the cache, and record nothing there.
            refresh: names of steps that run even if the cache has their results, which are replaced; True: all.
            answers: what steps that wait for a person or an event are given, by their name: values, or functions.
            priority: 0 (first) to 9 (last), of its steps that have none of their own; None: the pipeline's.

        """
        how = RunOptions(
            mode=mode,
            key=key,
            timeout_s=timeout_s,
            no_cache=no_cache,
            refresh=refresh,
            answers=answers,
            priority=priority,
        )
        return PipelineRun(self, how)

    @abstractmethod
    def _by_position(self) -> tuple[str, ...]:
        """Name the parameters that a call may give by position."""

    def _titled(self) -> str:
        return f"pipeline {self.name!r}{' ' + self.version if self.version else ''}"

    def _graph(self, build: Build, steps: Mapping[str, Step], output: Tree) -> Graph:
        if self._options.on_exit:
            steps = {**steps, **{step.name: step for step in handler_steps(self._options.on_exit, build, steps)}}
        return Graph(
            pipeline=self.name,
            version=self.version,
            steps=steps,
            output=output,
            parameters=self.parameters,
            fail_fast=self._options.fail_fast,
            deadline_s=self._options.deadline_s,
            priority=self._options.priority,
            description=self._options.description,
        )


@dataclass(frozen=True, slots=True)
class PipelineRun(Generic[P, R_co]):
    """A pipeline and how to run it."""

    pipeline: AnyPipeline[P, R_co]
    how: RunOptions = field(default_factory=RunOptions)

    def run(self, *args: P.args, **kwargs: P.kwargs) -> RunResult[R_co]:
        """Run the pipeline and wait for its end."""
        return hook.run_hook(self.pipeline, self.pipeline.bind(*args, **kwargs), self.how)
