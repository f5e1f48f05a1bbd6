"""`Pipeline`: a graph put together step by step, where `@pipeline` has a function whose body is called.

There is no body and no call: steps are added by name, one may name another that comes later, and parameters stay
parameters of the graph, so one graph serves all their values. Steps, handles and options are those of the other style.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar, NoReturn, TypeVar, overload

from evpipe.core.bindings import BindingError, OutputRef, ParameterRef, Tree
from evpipe.core.graph import Graph
from evpipe.core.graph import Step as GraphStep
from evpipe.core.limits import PRIORITY_DEFAULT
from evpipe.core.lineage import Child
from evpipe.core.names import check_name
from evpipe.core.parameters import REQUIRED, Parameter, check_parameter_names, check_parameters
from evpipe.errors import UsageError
from evpipe.sdk.build import Build, Readers, current_build
from evpipe.sdk.cache import Cache
from evpipe.sdk.children import Frame, child_of, count_steps
from evpipe.sdk.definition import QUEUE_DEFAULT, AnyPipeline, Built, PipelineOptions, PipelineRun
from evpipe.sdk.exits import check_handlers
from evpipe.sdk.functions import check_step_function
from evpipe.sdk.handle import Handle, ParameterHandle, Placeholder
from evpipe.sdk.limits import Limit
from evpipe.sdk.options import OPTION_NAMES, UNSET, Executor, OnFailureName, RunIfName, Unset
from evpipe.sdk.parameters import make_parameter
from evpipe.sdk.references import PIPELINE, RESULT, StepReference, is_reference, read_reference
from evpipe.sdk.retry import Retry
from evpipe.sdk.shape import Shape
from evpipe.sdk.step import Step, make_step
from evpipe.sdk.waits import Adding, Reject, Since, add_approval, add_event, add_sleep

T = TypeVar("T")
R = TypeVar("R")

#: Values that are given where a type is expected: `p.param("rows", 1000)`.
_NO_TYPES = (bool, int, float, str, bytes, list, tuple, dict, set)


class Draft(Build):
    """The build of a `Pipeline`: it never ends, and texts in arguments may name steps that are not there yet."""

    rename: ClassVar[str] = "give this one another name"

    def __init__(self, pipeline: str, queue: str) -> None:
        super().__init__(pipeline, queue)
        #: One entry per step.
        self._shapes: dict[str, Shape] = {}
        #: Steps whose arguments hold a `StepReference`.
        self._unresolved: set[str] = set()
        #: Pipelines that are steps.
        self._pipelines: dict[str, AnyPipeline[..., Any]] = {}

    def add(self, step: GraphStep, shape: Shape) -> Handle:
        handle = super().add(step, shape)
        self._shapes[step.name] = shape
        return handle

    def child(self, pipeline: AnyPipeline[..., Any], _arguments: Mapping[str, Tree], step: str) -> Child:
        # Its graph is made when this one is: either may get more steps until then, and they may be the same.
        self._pipelines[step] = pipeline
        return Child(pipeline=pipeline.name)

    def argument_readers(self, step: str) -> Readers:
        def read(text: str, where: str) -> Tree:
            found = read_reference(text, where)
            if not isinstance(found, StepReference):
                return found
            if found.step in self._shapes:
                # What is wrong with it is said at its line.
                return self._resolved(found, where)
            self._unresolved.add(step)
            return found

        return {str: read}

    def stands_for_value(self, given: object) -> bool:
        return super().stands_for_value(given) or (isinstance(given, str) and is_reference(given))

    def finished_steps(self) -> dict[str, GraphStep]:
        """Give the steps so far, with every reference looked up; one to a step that is not there is left to the graph.

        Pipelines among them have their graphs.

        Raises:
            UsageError: if a step that was added later has no such output.

        """
        steps = dict(self.steps)
        for name in self._unresolved & steps.keys():
            step = steps[name]
            arguments = self.tree(step.arguments, f"arguments of step {name!r}", {StepReference: self._resolved})
            steps[name] = replace(step, arguments=arguments)
        for name, pipeline in self._pipelines.items():
            if name not in steps:
                continue  # one that was refused in the end
            step = steps[name]
            assert step.child is not None
            child = replace(child_of(pipeline, step.arguments), queue=step.child.queue)
            steps[name] = replace(step, child=child)
        count_steps(self.pipeline, len(steps))
        return steps

    def foreign(self, handle: Placeholder) -> str:
        return (
            f"{handle!r} is from another pipeline: it can only be used in step(...) and output(...) of its own Pipeline"
        )

    def _resolved(self, found: StepReference, _where: str) -> OutputRef:
        shape = self._shapes.get(found.step)
        if shape is None:
            return OutputRef(found.step, found.path)
        problem = f"{found.where}: {found.text!r}"
        if found.is_whole and RESULT in (shape.names or ()) and found.path[:1] != (RESULT,):
            raise UsageError(
                f"{problem} would be the whole output, and step {found.step!r} has an output named {RESULT!r}: "
                f"'${{{found.step}.{RESULT}.{RESULT}}}' is that one; for the whole pass the handle"
            )
        handle = Handle(self, OutputRef(found.step), shape)
        try:
            for key in found.path:
                handle = handle._part(key)
        except BindingError as error:
            raise UsageError(f"{problem}: {error}") from None
        return handle._ref


class Pipeline(AnyPipeline[..., Any]):
    """A pipeline built by calls, as in `p = Pipeline("churn"); a = p.step("load", load, rows=5); p.output(a)`.

    Args:
        version: free text of at most 64 characters.
        queue: of its steps that name none.
        fail_fast: whether the first failed step ends the run; else what does not need it goes on.
        deadline_s: seconds from submit to the end of the run.
        on_exit: a step, or several, that begin when all others have ended, whatever happened.
        priority: of its runs, where their submits say nothing else: 0 (first) to 9 (last).

    Raises:
        UsageError: if the name or an option is not allowed.

    """

    def __init__(
        self,
        name: str,
        *,
        version: str = "",
        queue: str = QUEUE_DEFAULT,
        fail_fast: bool = False,
        deadline_s: float | None = None,
        on_exit: object = None,
        priority: int = PRIORITY_DEFAULT,
        description: str = "",
    ) -> None:
        check_name("pipeline", name)
        options = PipelineOptions(
            version=version,
            queue=queue,
            fail_fast=fail_fast,
            deadline_s=deadline_s,
            on_exit=check_handlers(on_exit, name),
            priority=priority,
            description=description,
        )
        # As namedtuple and Enum know their module: that of the caller.
        super().__init__(name, options, sys._getframe(1).f_globals.get("__name__", "__main__"))
        self._draft = Draft(name, queue)
        #: By name: what each step was made of.
        self._sources: dict[str, Step[..., Any]] = {}
        #: What was made of each plain function, so that a function in a thousand steps is looked at once.
        self._made: dict[Callable[..., Any], Step[..., Any]] = {}
        self._parameters: tuple[Parameter, ...] = ()
        self._output: Tree = None

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters, in the order in which they were added."""
        return self._parameters

    @overload
    def param(self, name: str, type: type[T], *, default: Any = REQUIRED) -> T: ...
    @overload
    def param(self, name: str, type: Any = None, *, default: Any = REQUIRED) -> Any: ...
    def param(self, name: str, type: Any = None, *, default: Any = REQUIRED) -> Any:
        """Add a parameter; give what stands for its value in arguments and in the output.

        Args:
            type: as an annotation: `int`, `list[str]`, `Literal["a", "b"]` for choices; None: any value.
            default: without one, each run must give a value.

        Raises:
            UsageError: if the name is not allowed or taken, the type is none, or the default is not of it.

        """
        check_name("parameter", name)
        if isinstance(type, _NO_TYPES):
            raise UsageError(
                f"parameter {name!r} of pipeline {self.name!r}: the type must be one such as int, not {type!r} "
                "(a default is given as default=…)"
            )
        annotation = Any if type is None else type
        parameter = make_parameter(name, annotation, self._value(name, default), {}, self.name)
        check_parameter_names([*self._parameters, parameter])
        self._parameters = (*self._parameters, parameter)
        return ParameterHandle(self._draft, ParameterRef(name))

    @overload
    def step(
        self,
        name: str,
        step: Callable[..., Coroutine[Any, Any, R]],
        /,
        *,
        args: Mapping[str, Any] | None = None,
        after: Sequence[object] | Unset = UNSET,
        queue: str | Unset | None = UNSET,
        executor: Executor | Unset | None = UNSET,
        outputs: Sequence[str] | Unset | None = UNSET,
        retries: int | Retry | Unset = UNSET,
        timeout_s: float | Unset | None = UNSET,
        on_failure: OnFailureName | Unset | None = UNSET,
        cache: bool | Cache | Unset = UNSET,
        pickle: bool | Unset = UNSET,
        when: object = UNSET,
        run_if: RunIfName | Unset = UNSET,
        priority: int | Unset | None = UNSET,
        limits: Limit | Sequence[Limit] | Unset | None = UNSET,
        description: str | Unset = UNSET,
        **arguments: Any,
    ) -> R: ...
    @overload
    def step(
        self,
        name: str,
        step: Callable[..., R],
        /,
        *,
        args: Mapping[str, Any] | None = None,
        after: Sequence[object] | Unset = UNSET,
        queue: str | Unset | None = UNSET,
        executor: Executor | Unset | None = UNSET,
        outputs: Sequence[str] | Unset | None = UNSET,
        retries: int | Retry | Unset = UNSET,
        timeout_s: float | Unset | None = UNSET,
        on_failure: OnFailureName | Unset | None = UNSET,
        cache: bool | Cache | Unset = UNSET,
        pickle: bool | Unset = UNSET,
        when: object = UNSET,
        run_if: RunIfName | Unset = UNSET,
        priority: int | Unset | None = UNSET,
        limits: Limit | Sequence[Limit] | Unset | None = UNSET,
        description: str | Unset = UNSET,
        **arguments: Any,
    ) -> R: ...
    def step(
        self,
        name: str,
        step: Any,
        /,
        *,
        args: Mapping[str, Any] | None = None,
        after: Sequence[object] | Unset = UNSET,
        queue: str | Unset | None = UNSET,
        executor: Executor | Unset | None = UNSET,
        outputs: Sequence[str] | Unset | None = UNSET,
        retries: int | Retry | Unset = UNSET,
        timeout_s: float | Unset | None = UNSET,
        on_failure: OnFailureName | Unset | None = UNSET,
        cache: bool | Cache | Unset = UNSET,
        pickle: bool | Unset = UNSET,
        when: object = UNSET,
        run_if: RunIfName | Unset = UNSET,
        priority: int | Unset | None = UNSET,
        limits: Limit | Sequence[Limit] | Unset | None = UNSET,
        description: str | Unset = UNSET,
        **arguments: Any,
    ) -> Any:
        """Add a step; give the handle of its value.

        Args:
            name: exactly this name.
            step: a `@step`, a plain function at module level, or a pipeline: then its run is the step.
            args: arguments whose names are options too; by keyword such a name is refused.
            after: handles or names of steps, also of ones that are added later; the other options are those of `@step`.
            arguments: of the function; values, handles, parameters, and texts such as `"${train.score}"`.

        Raises:
            UsageError: if the name is taken, the function cannot be a step, or an argument or option is wrong.

        """
        given = {
            "after": after,
            "queue": queue,
            "executor": executor,
            "outputs": outputs,
            "retries": retries,
            "timeout_s": timeout_s,
            "on_failure": on_failure,
            "cache": cache,
            "pickle": pickle,
            "when": when,
            "run_if": run_if,
            "priority": priority,
            "limits": limits,
            "description": description,
        }
        options = {option: value for option, value in given.items() if value is not UNSET}
        return self._add(name, step, options, args, arguments)

    def map(
        self,
        name: str,
        step: Any,
        /,
        *,
        args: Mapping[str, Any] | None = None,
        product: bool = False,
        levels: int = 1,
        **arguments: Any,
    ) -> Any:
        """Add a step that runs once for each element of lists, as `step.map(...)` does; give the handle of the list.

        Args:
            name: exactly this name.
            step: as of `step`.
            args: arguments whose names are options too.
            product: every element of each list with every one of the others; else the lists go in step.
            levels: how deep the lists are that are mapped over.
            arguments: of the function, lists and others, as those of `step`, and options of the step.

        Raises:
            UsageError: as `step`, and if there is nothing to map over.

        """
        options = {option: arguments.pop(option) for option in OPTION_NAMES if option in arguments}
        return self._add(name, step, options, args, arguments, (product, levels))

    def _add(
        self,
        name: str,
        step: Any,
        options: dict[str, Any],
        args: Mapping[str, Any] | None,
        arguments: dict[str, Any],
        mapping: tuple[bool, int] | None = None,
    ) -> Handle:
        check_name("step", name)
        where = f"step {name!r}"
        if name == PIPELINE:
            raise UsageError(f"{where} needs another name: '${{{PIPELINE}.rows}}' is the parameter 'rows'")
        self._draft.check_free(name)
        if isinstance(step, (AnyPipeline, PipelineRun)):
            return self._add_pipeline(name, step, options, args, arguments, mapping)
        source = self._source(step, name)
        takes = {
            p.name for p in source._signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        }
        _refuse_ambiguous(options, args, takes, source.__name__, where, is_plain=source is not step)
        positional, named = _split(source, _merged(args, arguments, where))
        made = source.options(name=name).options(**options)
        handle = made._add_to(self._draft, positional, named, mapping)
        self._sources[name] = made
        return handle

    def approval(
        self,
        name: str,
        message: str,
        *,
        answer: Any = bool,
        show: Mapping[str, object] | None = None,
        reject: Reject = "value",
        after: Sequence[object] = (),
        when: object = None,
        run_if: RunIfName = "all_succeeded",
        timeout_s: float | None = None,
        default: object = UNSET,
        on_failure: OnFailureName = "fail",
        description: str = "",
    ) -> Any:
        """Add a step that waits for a person's answer; as `evpipe.approval`."""
        given = {"after": after, "when": when, "run_if": run_if, "on_failure": on_failure, "description": description}
        return add_approval(self._adding, message, answer, show, reject, name, timeout_s, default, given)

    def wait_for_event(
        self,
        name: str,
        signal: str | None = None,
        *,
        match: Mapping[str, object] | None = None,
        run: object = None,
        pipeline: str | None = None,
        step: str | None = None,
        kind: str | None = None,
        since: Since = "wait",
        after: Sequence[object] = (),
        when: object = None,
        run_if: RunIfName = "all_succeeded",
        timeout_s: float | None = None,
        default: object = UNSET,
        on_failure: OnFailureName = "fail",
        description: str = "",
    ) -> Any:
        """Add a step that waits for an event; as `evpipe.wait_for_event`."""
        given = {"after": after, "when": when, "run_if": run_if, "on_failure": on_failure, "description": description}
        what = {"signal": signal, "match": match, "run": run, "pipeline": pipeline, "step": step, "kind": kind}
        return add_event(self._adding, what, since, name, timeout_s, default, given)

    def sleep(
        self,
        name: str,
        seconds: float | timedelta | str,
        *,
        after: Sequence[object] = (),
        when: object = None,
        run_if: RunIfName = "all_succeeded",
        on_failure: OnFailureName = "fail",
        description: str = "",
    ) -> Any:
        """Add a step that ends a while after it became ready; as `evpipe.sleep`."""
        given = {"after": after, "when": when, "run_if": run_if, "on_failure": on_failure, "description": description}
        return add_sleep(self._adding, seconds, name, given)

    def _add_pipeline(
        self,
        name: str,
        step: AnyPipeline[..., Any] | PipelineRun[..., Any],
        options: Mapping[str, Any],
        args: Mapping[str, Any] | None,
        arguments: dict[str, Any],
        mapping: tuple[bool, int] | None,
    ) -> Handle:
        where = f"step {name!r}"
        found, before = (step.pipeline, step._of_step()) if isinstance(step, PipelineRun) else (step, {})
        for option in ("executor", "outputs", "cache", "limits", "pickle"):
            if option in options:
                raise UsageError(f"{where} is pipeline {found.name!r}: {option} is an option of the steps in it")
        takes = {parameter.name for parameter in found.parameters}
        _refuse_ambiguous(options, args, takes, found.name, where, is_plain=False)
        given = {**before, **options, "name": name}
        return found._add_to(self._draft, (), _merged(args, arguments, where), given, mapping)

    def output(self, tree: Any) -> None:
        """Say what the value of a run is: handles and parameters, also inside lists, tuples and dicts.

        A second call replaces the first. Without one, the value is None.

        Raises:
            UsageError: for a handle of another pipeline, or a text reference.

        """

        def refuse(text: str, where: str) -> str:
            if is_reference(text):
                raise UsageError(f"{where}: {text!r} is not read here, only in arguments of steps: give the handle")
            return text

        self._output = self._draft.tree(tree, f"the output of pipeline {self.name!r}", {str: refuse})

    def build(self, values: Mapping[str, Any]) -> Built:
        """Give the graph as it is now; it is the same whatever the values are.

        Raises:
            UsageError: if the values are wrong, a reference names nothing, or steps wait for each other.

        """
        given = {name: self._value(name, value) for name, value in values.items()}
        parameters = check_parameters(self._parameters, given, of=self.name)
        with Frame(self, parameters):
            return Built(self._child_graph(parameters), parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Add it as a step, in the body of a `@pipeline`; gives the handle of its value.

        Raises:
            UsageError: if no body is running here, or an argument is wrong.

        """
        build = current_build()
        return self._call_plainly(args, kwargs) if build is None else self._add_to(build, args, kwargs)

    @property
    def _by_constants(self) -> bool:
        return False

    @property
    def _shape(self) -> Shape:
        return Shape()

    def _child_graph(self, _arguments: Mapping[str, Tree]) -> Graph:
        for source in self._sources.values():
            source._check_found_by_name()
        return self._graph(self._draft, self._draft.finished_steps(), self._output)

    def _call_plainly(self, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
        raise UsageError(
            f"pipeline {self.name!r} has no body to call: outside of a pipeline run(...) runs it; as a step of a "
            f"Pipeline it is given to step(...)"
        )

    def __repr__(self) -> str:
        count = len(self._draft.steps)
        return f"<{self._titled()}: {count} step{'s' * (count != 1)}>"

    def _by_position(self) -> tuple[str, ...]:
        return ()

    def _check_step_name(self, name: str) -> None:
        check_name("step", name)
        if name == PIPELINE:
            raise UsageError(f"step {name!r} needs another name: '${{{PIPELINE}.rows}}' is the parameter 'rows'")
        self._draft.check_free(name)

    @property
    def _adding(self) -> Adding:
        def adding(_base: str, name: str | None) -> tuple[Build, str]:
            assert name is not None, "in this style every step has its name"
            self._check_step_name(name)
            return self._draft, name

        return adding

    def _source(self, found: Any, name: str) -> Step[..., Any]:
        """Give the `@step` that was passed, or make one of a plain function."""
        if isinstance(found, Step):
            return found
        if not callable(found):
            raise UsageError(f"step {name!r} must be a function or a @step, not {found!r}")
        function = check_step_function(found, f"step {name!r} cannot be")
        if function not in self._made:
            self._made[function] = make_step(function, function.__name__, {})
        return self._made[function]

    def _value(self, name: str, value: Any) -> Any:
        """Copy a default or a value of a parameter; it is known, so no handle may be in it."""

        def refuse(handle: Placeholder, where: str) -> NoReturn:
            raise UsageError(f"{where}: {handle!r} is not a value: those of parameters are known before a run")

        where = f"parameter {name!r} of pipeline {self.name!r}"
        return self._draft.tree(value, where, {Handle: refuse, ParameterHandle: refuse})


def _refuse_ambiguous(
    options: Mapping[str, Any],
    args: Mapping[str, Any] | None,
    takes: Collection[str],
    function: str,
    where: str,
    *,
    is_plain: bool,
) -> None:
    """Refuse a keyword that could be meant for the function and for the step."""
    for option in options:
        if option in takes:
            shown = f"step({function})" if is_plain else function
            raise UsageError(
                f"{where}: {option!r} is a parameter of {function} and an option of a step: "
                f"args={{{option!r}: …}} gives it to the function, {shown}.options({option}=…) sets the option"
            )
    if args is None:
        return
    if "args" in takes and not (isinstance(args, Mapping) and "args" in args):
        raise UsageError(f"{where}: 'args' is a parameter of {function}: args={{'args': …}} gives it to the function")
    if not isinstance(args, Mapping):
        raise UsageError(f"{where}: args must be a dict of arguments by name, not {args!r}")


def _merged(args: Mapping[str, Any] | None, arguments: dict[str, Any], where: str) -> dict[str, Any]:
    merged = dict(arguments)
    for name, value in (args or {}).items():
        if not isinstance(name, str):
            raise UsageError(f"{where}: the names in args must be text, not {name!r}")
        if name in merged:
            raise UsageError(f"{where}: argument {name!r} is given in args and by keyword")
        merged[name] = value
    return merged


def _split(source: Step[..., Any], arguments: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Take out what the function takes by position only: here everything has a name."""
    positional: list[Any] = []
    for parameter in source._signature.parameters.values():
        if parameter.kind is not parameter.POSITIONAL_ONLY or parameter.name not in arguments:
            break
        positional.append(arguments.pop(parameter.name))
    return tuple(positional), arguments
