"""What every pipeline is, however it was written: a name, options, parameters, and a graph for their values.

`@pipeline` (`pipeline.py`) and `Pipeline` (`builder.py`) differ in where the graph comes from; whoever runs or
submits one needs no more than this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Generic, ParamSpec, TypeVar, cast, overload

from evpipe.core.bindings import ParameterRef, Tree
from evpipe.core.graph import EXECUTORS, Graph, Step
from evpipe.core.mapping import Mapped
from evpipe.core.names import check_name
from evpipe.core.parameters import Parameter, check_known, check_parameters
from evpipe.core.states import OnFailure
from evpipe.errors import UsageError
from evpipe.sdk import hook
from evpipe.sdk.build import Build, current_build
from evpipe.sdk.children import mapped_arguments, split_arguments
from evpipe.sdk.exits import handler_steps
from evpipe.sdk.handle import Handle
from evpipe.sdk.hook import Mode, RunOptions
from evpipe.sdk.mapping import Elements
from evpipe.sdk.options import UNSET, OnFailureName, RunIfName, StepOptions, Unset, check_options
from evpipe.sdk.result import RunResult
from evpipe.sdk.retry import Retry
from evpipe.sdk.shape import Shape
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
        return check_parameters(self.parameters, self._named(args, kwargs), of=self.name)

    @abstractmethod
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Add it as a step, in the body of a pipeline; what it is elsewhere the style says."""

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
        name: str | Unset | None = UNSET,
        queue: str | Unset | None = UNSET,
        retries: int | Retry | Unset = UNSET,
        on_failure: OnFailureName | Unset = UNSET,
        after: Sequence[object] | Unset = UNSET,
        when: object = UNSET,
        run_if: RunIfName | Unset = UNSET,
        description: str | Unset = UNSET,
    ) -> PipelineRun[P, R_co]:
        """Say how to run it, as in `churn.options(mode="local").run(rows=500)`, or what it is as a step.

        In the body of a pipeline a call such as `churn.options(retries=1, when=ok)(rows)` takes the options of `@step`
        that are here. Options of the one kind are refused with the other.

        Args:
            mode: what runs it; None: as configured.
            key: with the same key, graph and parameters there is only one run.
            timeout_s: seconds to wait for the end; the run itself goes on after them. Of a step: seconds for
                its run from submit to end.
            no_cache: take nothing from the cache, and record nothing there.
            refresh: names of steps that run even if the cache has their results, which are replaced; True: all.
            answers: what steps that wait for a person or an event are given, by their name: values, or functions.
            priority: 0 (first) to 9 (last), of its steps that have none of their own; None: the pipeline's.
            name: exactly this name for the step.
            queue: takes all launches of the step's run, whatever queue its steps name.
            retries: how often a run that failed is followed by another.

        Raises:
            UsageError: for an option of a step that is not allowed.

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
        given = {
            "queue": queue,
            "retries": retries,
            "on_failure": on_failure,
            "after": after,
            "when": when,
            "run_if": run_if,
            "description": description,
        }
        options = {option: value for option, value in given.items() if value is not UNSET}
        check_options(options, self._titled(), executors=())
        if name is not UNSET and name is not None:
            options["name"] = check_name("step", name)
        return PipelineRun(self, how, options)

    @abstractmethod
    def _by_position(self) -> tuple[str, ...]:
        """Name the parameters that a call may give by position."""

    @property
    @abstractmethod
    def _by_constants(self) -> bool:
        """Whether the graph is made for the values of the parameters that are known when it is made."""

    @property
    @abstractmethod
    def _shape(self) -> Shape:
        """What is known of the value."""

    @abstractmethod
    def _child_graph(self, arguments: Mapping[str, Tree]) -> Graph:
        """Make the graph for a run in which these are the parameters, of which some may not be known yet."""

    @abstractmethod
    def _call_plainly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do what a call does where no pipeline is being built."""

    def _named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Give the arguments of a call by name."""
        by_position = self._by_position()
        if len(args) > len(by_position):
            raise UsageError(f"pipeline {self.name!r} takes {len(by_position)} by position, and {len(args)} were given")
        given = dict(zip(by_position, args, strict=False))
        for name, value in kwargs.items():
            if name in given:
                raise UsageError(f"pipeline {self.name!r} got two values for the parameter {name!r}")
            given[name] = value
        return given

    def _map(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        given: Mapping[str, object],
        mapping: tuple[bool, int],
    ) -> Handle:
        build = current_build()
        if build is None:
            raise UsageError(
                f"pipeline {self.name!r}: .map(...) adds steps to a pipeline; outside of one call it in a loop"
            )
        return self._add_to(build, args, kwargs, given, mapping)

    def _add_to(
        self,
        build: Build,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        given: Mapping[str, object] = MappingProxyType({}),
        mapping: tuple[bool, int] | None = None,
    ) -> Handle:
        """Add it as a step.

        Args:
            given: options of the step.
            mapping: how it is mapped: `product` and `levels`; None: it is not.
        """
        rest = dict(given)
        exact = rest.pop("name", None)
        name = build.automatic_name(self.name) if exact is None else build.check_free(str(exact))
        where = f"step {name!r}"
        # Checked here, where the handles among them can be told from those of other pipelines.
        options = StepOptions(executor=EXECUTORS[0], **check_options(rest, where, executors=()))
        readers = build.argument_readers(name)
        named = self._named(args, kwargs)
        check_known(self.parameters, named, of=self.name)
        mapped: Mapped | None = None
        if mapping is not None:
            named, mapped = mapped_arguments(named, build.stands_for_value, where, *mapping)
        places = () if mapped is None else mapped.places
        trees = {key: build.tree(value, f"argument {key!r} of {where}", readers) for key, value in named.items()}
        arguments = split_arguments(self.parameters, trees, self.name, places)
        # What is another value for each element is no constant.
        of_element = {**arguments, **{str(place): ParameterRef(str(place)) for place in places}}
        shape = self._shape
        step = Step(
            name=name,
            arguments=arguments,
            after=build.parents(options.after, where),
            outputs=shape.outputs,
            retries=options.retries,
            timeout_s=options.timeout_s,
            on_failure=options.on_failure or OnFailure.FAIL,
            when=build.condition(options.when, where),
            run_if=options.run_if,
            description=options.description,
            priority=options.priority,
            mapped=mapped,
            child=replace(build.child(self, of_element, name), queue=options.queue or ""),
        )
        for _ in range(mapped.levels if mapped is not None else 0):
            shape = Shape(each=shape)
        return build.add(step, shape)

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
    #: Options of the step that a call adds.
    step: Mapping[str, object] = field(default_factory=dict)

    def run(self, *args: P.args, **kwargs: P.kwargs) -> RunResult[R_co]:
        """Run the pipeline and wait for its end.

        Raises:
            UsageError: if the arguments, the graph or the options are wrong.

        """
        if self.step:
            option = next(iter(self.step))
            raise UsageError(
                f"pipeline {self.pipeline.name!r}: {option!r} is an option of a step: it is for a call in the body of "
                "a pipeline, not for run(...)"
            )
        return hook.run_hook(self.pipeline, self.pipeline.bind(*args, **kwargs), self.how)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Add it as a step with these options, in the body of a pipeline; elsewhere call it as it is called there.

        Raises:
            UsageError: if an argument or an option is wrong.

        """
        build = current_build()
        if build is None:
            return cast("R_co", self.pipeline._call_plainly(args, kwargs))
        return cast("R_co", self.pipeline._add_to(build, args, kwargs, self._of_step()))

    @overload
    def map(self, /, *args: Any, levels: int, product: bool = False, **kwargs: Any) -> Elements[Any]: ...
    @overload
    def map(self, /, *args: Any, product: bool = False, **kwargs: Any) -> Elements[R_co]: ...
    def map(self, /, *args: Any, product: bool = False, levels: int = 1, **kwargs: Any) -> Any:
        """Run it once for each element of lists, with these options; as `map` of the pipeline."""
        return self.pipeline._map(args, kwargs, self._of_step(), (product, levels))

    def _of_step(self) -> dict[str, object]:
        """Give the options of the step; UsageError if there are such of a run."""
        how = self.how
        of_run = {
            "mode": how.mode,
            "key": how.key,
            "no_cache": how.no_cache,
            "refresh": how.refresh,
            "answers": how.answers,
        }
        for option, value in of_run.items():
            if value not in (None, False):
                raise UsageError(
                    f"pipeline {self.pipeline.name!r}: {option!r} is for run(...): what a step of a run does is said "
                    "when that is run"
                )
        return {**self.step, "timeout_s": how.timeout_s, "priority": how.priority}


def no_pipeline(call: str, target: object) -> UsageError:
    """Make the error for what was given in place of a pipeline to `run` or `submit`."""
    takes = f"{call} takes a function with @pipeline or a Pipeline"
    if not isinstance(target, PipelineRun):
        return UsageError(f"{takes}, not a {type(target).__name__}")
    if call == "submit":
        return UsageError(f"{takes}, and options beside it, as in submit(p, {{…}}, priority=…), not p.options(…)")
    return UsageError(
        f"{takes}, and options beside it, as in run(p, {{…}}, mode='local', answers=…); what p.options(…) gives is run "
        "by itself: p.options(mode='local', answers=…).run(…)"
    )
