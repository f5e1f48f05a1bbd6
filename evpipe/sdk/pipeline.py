"""`@pipeline`: a function whose body, called once, says which steps there are and what each takes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, Protocol, TypeVar, cast, overload

from evpipe.core.bindings import ParameterRef, Tree
from evpipe.core.graph import Graph
from evpipe.core.limits import PRIORITY_DEFAULT
from evpipe.core.parameters import Parameter, check_parameters
from evpipe.errors import UsageError
from evpipe.sdk.build import Build, current_build, refuse_handles
from evpipe.sdk.children import Frame, is_open
from evpipe.sdk.definition import QUEUE_DEFAULT, AnyPipeline, Built, PipelineOptions
from evpipe.sdk.exits import check_handlers
from evpipe.sdk.functions import check_pipeline_function, name_for
from evpipe.sdk.handle import ParameterHandle
from evpipe.sdk.mapping import Elements
from evpipe.sdk.parameters import parameters_of
from evpipe.sdk.shape import Shape, output_shape

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

#: `Built` is handed on: it came from here before there were two styles.
__all__ = ["Built", "PipelineDecorator", "PipelineFunction", "pipeline"]


class PipelineFunction(AnyPipeline[P, R_co]):
    """A function decorated with `@pipeline`. Made by the decorator only."""

    __name__: str

    def __init__(self, fn: Callable[P, R_co], name: str, options: PipelineOptions) -> None:
        functools.update_wrapper(self, fn)
        super().__init__(name, options, fn.__module__)
        self._fn = fn
        # Not named __signature__: inspect would take it for the one of calls, which it is, but before it is made.
        self._signature = inspect.signature(fn)
        for parameter in self._signature.parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise UsageError(
                    f"pipeline {name!r}: {parameter} is not allowed, each parameter needs a name of its own: "
                    "take a list or a dict"
                )

    @property
    def fn(self) -> Callable[P, R_co]:
        """The undecorated function."""
        return self._fn

    @functools.cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters, in the order of the signature.

        Raises:
            UsageError: at the first look, if a default is not of its parameter's type.

        """
        # Not when decorated: the classes that the annotations name may be written further down in the module.
        return parameters_of(self._fn, self._signature, self.name)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the body with plain functions; in the body of a pipeline, add it as a step."""
        build = current_build()
        if build is not None:
            return cast("R_co", self._add_to(build, args, kwargs))
        return cast("R_co", self._call_plainly(args, kwargs))

    @overload
    def map(self, /, *args: Any, levels: int, product: bool = False, **kwargs: Any) -> Elements[Any]: ...
    @overload
    def map(self, /, *args: Any, product: bool = False, **kwargs: Any) -> Elements[R_co]: ...
    def map(self, /, *args: Any, product: bool = False, levels: int = 1, **kwargs: Any) -> Any:
        """Run it once for each element of lists, in the body of a pipeline; each element is a run of its own.

        Args and errors are those of `map` of a step.
        """
        return self._map(args, kwargs, {}, (product, levels))

    def build(self, values: Mapping[str, Any]) -> Built:
        """Call the body with these values and give the graph of the steps that it called.

        Args:
            values: of the parameters; those with a default may be left out.

        Raises:
            UsageError: if the values, the body's use of a handle or the graph are wrong.
            Exception: whatever the body raises.

        """
        parameters = check_parameters(self.parameters, values, of=self.name)
        with Frame(self, parameters):
            return Built(self._child_graph(parameters), parameters)

    @property
    def _by_constants(self) -> bool:
        return True

    def _child_graph(self, arguments: Mapping[str, Tree]) -> Graph:
        with Build(self.name, self._options.queue) as build:
            values: dict[str, Any] = {}
            for name, tree in arguments.items():
                if is_open(tree):
                    values[name] = ParameterHandle(build, ParameterRef(name))
                else:
                    # The body may change a list that it was given; what was asked for stays, and so does the default.
                    values[name] = build.tree(tree, f"parameter {name!r} of pipeline {self.name!r}")
            args, kwargs = self._arguments(values)
            returned = self._fn(*args, **kwargs)
            output = build.tree(returned, f"the value returned by pipeline {self.name!r}")
        return self._graph(build, build.steps, output)

    def _call_plainly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        refuse_handles(args, kwargs, f"pipeline {self.name!r}")
        return self._fn(*args, **kwargs)

    @functools.cached_property
    def _shape(self) -> Shape:
        # Not when decorated: the classes that the annotation names may be written further down in the module.
        return output_shape(self._fn, None, f"pipeline {self.name!r}")

    def __repr__(self) -> str:
        return f"<{self._titled()}: {self._fn.__module__}.{self._fn.__qualname__}>"

    def _by_position(self) -> tuple[str, ...]:
        return tuple(p.name for p in self._signature.parameters.values() if p.kind is not p.KEYWORD_ONLY)

    def _arguments(self, values: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        found = self._signature.parameters.values()
        positional = [values.pop(p.name) for p in found if p.kind is p.POSITIONAL_ONLY]
        return positional, values


class PipelineDecorator(Protocol):
    """What `@pipeline(...)` with options gives."""

    def __call__(self, fn: Callable[P, R], /) -> PipelineFunction[P, R]: ...


@overload
def pipeline(fn: Callable[P, R], /) -> PipelineFunction[P, R]: ...
@overload
def pipeline(
    *,
    name: str | None = None,
    version: str = "",
    queue: str = QUEUE_DEFAULT,
    fail_fast: bool = False,
    deadline_s: float | None = None,
    on_exit: object = None,
    priority: int = PRIORITY_DEFAULT,
    description: str = "",
) -> PipelineDecorator: ...
def pipeline(
    fn: Any = None,
    /,
    *,
    name: str | None = None,
    version: str = "",
    queue: str = QUEUE_DEFAULT,
    fail_fast: bool = False,
    deadline_s: float | None = None,
    on_exit: object = None,
    priority: int = PRIORITY_DEFAULT,
    description: str = "",
) -> Any:
    """Make a pipeline of a function: `@pipeline` or `@pipeline(version="1.0.0", …)`.

    Args:
        name: default: the function's name.
        version: free text of at most 64 characters.
        queue: of its steps that name none.
        fail_fast: whether the first failed step ends the run; else what does not need it goes on.
        deadline_s: seconds from submit to the end of the run.
        on_exit: a step, or a list of steps, that begin when all others have ended, whatever happened; each is given
            a `RunSummary`, or the parts of it that it takes by name. `when=exit_status == "failed"` makes one
            conditional.
        priority: of its runs, where their submits say nothing else: 0 (first) to 9 (last).

    Raises:
        UsageError: if the function cannot be a pipeline or an option is not allowed.

    """

    def decorate(fn: object) -> PipelineFunction[..., Any]:
        function = check_pipeline_function(fn)
        pipeline_name = name_for("pipeline", function, name)
        options = PipelineOptions(
            version=version,
            queue=queue,
            fail_fast=fail_fast,
            deadline_s=deadline_s,
            on_exit=check_handlers(on_exit, pipeline_name),
            priority=priority,
            description=description,
        )
        return PipelineFunction(function, pipeline_name, options)

    return decorate if fn is None else decorate(fn)
