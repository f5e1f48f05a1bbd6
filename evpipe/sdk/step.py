"""`@step`: a function that runs as a step of a pipeline, and is the plain function everywhere else.

`Step` is what the name in the user's module stands for. A call of it asks whether a pipeline's body is
running (`build`): if not, it is the plain call; if so, it adds a step to the graph and gives a handle.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from evpipe.core.fingerprint import CachePolicy
from evpipe.core.graph import Step as GraphStep
from evpipe.core.names import check_name, nearest
from evpipe.core.states import OnFailure
from evpipe.errors import UsageError
from evpipe.sdk.build import Build, current_build, refuse_handles
from evpipe.sdk.cache import Cache
from evpipe.sdk.context import plain_call
from evpipe.sdk.functions import check_step_function, code_of, name_for
from evpipe.sdk.handle import Handle
from evpipe.sdk.limits import Limit
from evpipe.sdk.mapping import Elements, read_mapped
from evpipe.sdk.options import (
    UNSET,
    Executor,
    OnFailureName,
    RunIfName,
    StepOptions,
    Unset,
    check_options,
    executors_of,
)
from evpipe.sdk.retry import Retry
from evpipe.sdk.shape import Shape, output_shape

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
StepT = TypeVar("StepT", bound="Step[..., Any]")


class Step(Generic[P, R_co]):
    """A function decorated with `@step`, or a command. Made by the decorator, and by `command`, only.

    To a type checker a call gives what the function returns (for an `async def`: what awaiting it gives);
    in a pipeline it is a handle of that.
    """

    __name__: str

    def __init__(self, fn: Callable[..., Any], name: str, options: StepOptions) -> None:
        functools.update_wrapper(self, fn)
        #: What its calls are named after.
        self.name = name
        self._fn = fn
        self._options = options
        #: The name that was asked for by `options(name=)`: exactly this one, for one call.
        self._exact_name: str | None = None
        self._code = code_of(fn)
        self._signature = inspect.signature(fn)
        #: Per `outputs=` option; shared by all that `options` makes of this step.
        self._shapes: dict[tuple[str, ...] | None, Shape] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        build = current_build()
        if build is not None:
            return cast("R_co", self._add_to(build, args, kwargs))
        refuse_handles(args, kwargs, f"step {self.name!r}")
        return self._call_plainly(*args, **kwargs)

    @overload
    def map(self, /, *args: Any, levels: int, product: bool = False, **kwargs: Any) -> Elements[Any]: ...
    @overload
    def map(self, /, *args: Any, product: bool = False, **kwargs: Any) -> Elements[R_co]: ...
    def map(self, /, *args: Any, product: bool = False, levels: int = 1, **kwargs: Any) -> Any:
        """Run it once for each element of lists, as in `train.map(depths, data=unmapped(rows))`, in a pipeline's body.

        Lists and tuples are mapped over, and handles whose values turn out to be such; everything else, and what is
        `unmapped`, is the same for every element. Each element is a step of its own: `train[2]` has its own attempts,
        cache and state, and where it takes an element of another mapped step it waits for that one only. In `when=` a
        list that is mapped over stands for the element.

        Args:
            product: every element of each list with every one of the others, the last list's running fastest; else the
                lists go in step and must have one length.
            levels: how deep the lists are that are mapped over: 2 is lists of lists.

        Returns:
            A handle of the list of the results, in order, with None for an element that was skipped. `[i]` of it is
            the result of an element, `["score"]` the list of that part of each.

        Raises:
            UsageError: outside of a pipeline, if there is nothing to map over, or lists differ in length.
        """
        build = current_build()
        if build is None:
            raise UsageError(
                f"step {self.name!r}: .map(...) adds steps to a pipeline; outside of one call it in a loop"
            )
        return self._add_to(build, args, kwargs, mapping=(product, levels))

    def options(
        self: StepT,
        *,
        name: str | Unset | None = UNSET,
        queue: str | Unset | None = UNSET,
        executor: Executor | Unset | None = UNSET,
        outputs: Sequence[str] | Unset | None = UNSET,
        retries: int | Retry | Unset = UNSET,
        timeout_s: float | Unset | None = UNSET,
        on_failure: OnFailureName | Unset | None = UNSET,
        after: Sequence[object] | Unset = UNSET,
        cache: bool | Cache | Unset = UNSET,
        pickle: bool | Unset = UNSET,
        when: object = UNSET,
        run_if: RunIfName | Unset = UNSET,
        priority: int | Unset | None = UNSET,
        limits: Limit | Sequence[Limit] | Unset | None = UNSET,
        description: str | Unset = UNSET,
    ) -> StepT:
        """Give the same step with other options, as in `load.options(queue="gpu", name="load2")(rows)`.

        Args:
            name: exactly this name for the step that a call adds; the other options are those of `@step`.

        Raises:
            UsageError: for an option that is not allowed.

        """
        where = f"step {(self._exact_name or self.name)!r}"
        given = {
            "queue": queue,
            "executor": executor,
            "outputs": outputs,
            "retries": retries,
            "timeout_s": timeout_s,
            "on_failure": on_failure,
            "after": after,
            "cache": cache,
            "pickle": pickle,
            "when": when,
            "run_if": run_if,
            "priority": priority,
            "limits": limits,
            "description": description,
        }
        checked = self._check_options(given, where)
        other = copy.copy(self)
        other._options = replace(self._options, **checked)
        if name is not UNSET:
            other._exact_name = None if name is None else check_name("step", name)
        return other

    def __repr__(self) -> str:
        return f"<step {self.name!r}: {self._code['module']}.{self._code['name']}>"

    def _call_plainly(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        raise NotImplementedError

    def _check_options(self, given: Mapping[str, object], where: str) -> dict[str, Any]:
        """Check options that are to replace its own; see `check_options`."""
        checked = check_options(given, where, executors=executors_of(self._fn))
        check_ignored(checked.get("cache"), self._signature, where)
        return checked

    def _shape(self) -> Shape:
        # Not when decorated: the classes that the annotation names may be written further down in the module.
        declared = self._options.outputs
        if declared not in self._shapes:
            self._shapes[declared] = output_shape(self._fn, declared, f"step {self.name!r}")
        return self._shapes[declared]

    def _add_to(
        self,
        build: Build,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        mapping: tuple[bool, int] | None = None,
    ) -> Handle:
        """Add a step to a build.

        Args:
            mapping: how it is mapped: `product` and `levels`; None: it is not.
        """
        self._check_found_by_name()
        exact = self._exact_name
        name = build.automatic_name(self.name) if exact is None else build.check_free(exact)
        where = f"step {name!r}"
        options, shape = self._options, self._shape()
        bound, mapped = self._bind(args, kwargs, where), None
        if mapping is not None:
            product, levels = mapping
            bound, mapped = read_mapped(bound, build.stands_for_value, where, product, levels)
        step = GraphStep(
            name=name,
            code=self._code,
            arguments=build.arguments(bound, name),
            after=build.parents(options.after, where),
            queue=options.queue or build.queue,
            executor=options.executor,
            outputs=shape.outputs,
            retries=options.retries,
            timeout_s=options.timeout_s,
            on_failure=options.on_failure or OnFailure.FAIL,
            cache=options.cache,
            pickle=options.pickle,
            when=build.condition(options.when, where),
            run_if=options.run_if,
            priority=options.priority,
            limits=options.limits,
            mapped=mapped,
            description=options.description,
        )
        for _ in range(mapped.levels if mapped is not None else 0):
            shape = Shape(each=shape)
        return build.add(step, shape)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any], where: str) -> inspect.BoundArguments:
        try:
            return self._signature.bind(*args, **kwargs)
        except TypeError as error:
            parameters = self._signature.parameters
            takes = ", ".join(str(p.replace(annotation=p.empty)) for p in parameters.values()) or "nothing"
            problem = str(error)
            # A misspelt name is a missing one too; Python tells of the latter.
            unknown = next((key for key in kwargs if key not in parameters), None)
            if unknown is not None and all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
                problem = f"got an unexpected keyword argument {unknown!r}{nearest(unknown, parameters)}"
            raise UsageError(f"{where}: {problem} (it takes: {takes})") from None

    def _check_found_by_name(self) -> None:
        """Refuse to build a graph that would run other code: the name stands for something else by now."""
        module = sys.modules.get(self._code["module"])
        if module is None:
            return  # run from a file that is not a module: the worker that loads the file will see
        found = getattr(module, self._code["name"], None)
        if getattr(found, "_fn", found) is not self._fn:
            raise UsageError(
                f"step {self.name!r}: {self._code['module']}.{self._code['name']} is not its function "
                f"{'any more' if found is not None else '(there is no such name)'}, so a worker would not find it: "
                "give each step function a name of its own at module level"
            )


class FunctionStep(Step[P, R_co]):
    """A step of a `def`."""

    @property
    def fn(self) -> Callable[P, R_co]:
        """The undecorated function."""
        return self._fn

    def _call_plainly(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        with plain_call():
            return self.fn(*args, **kwargs)


class CoroutineStep(Step[P, R_co]):
    """A step of an `async def`."""

    @property
    def fn(self) -> Callable[P, Coroutine[Any, Any, R_co]]:
        """The undecorated coroutine function."""
        return self._fn

    def _call_plainly(self, *_args: P.args, **_kwargs: P.kwargs) -> R_co:
        name = self._fn.__name__
        raise UsageError(f"step {self.name!r} is an `async def`: outside a pipeline its call is `await {name}.fn(...)`")


class StepDecorator(Protocol):
    """What `@step(...)` with options gives."""

    # The overlap is meant: a coroutine is a value too, and the first overload takes it.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> CoroutineStep[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> FunctionStep[P, R]: ...


# The overlap is meant: as in StepDecorator.
@overload
def step(fn: Callable[P, Coroutine[Any, Any, R]], /) -> CoroutineStep[P, R]: ...  # type: ignore[overload-overlap]
@overload
def step(fn: Callable[P, R], /) -> FunctionStep[P, R]: ...
@overload
def step(
    *,
    name: str | None = None,
    queue: str | None = None,
    executor: Executor | None = None,
    outputs: Sequence[str] | None = None,
    retries: int | Retry = 0,
    timeout_s: float | None = None,
    on_failure: OnFailureName | None = None,
    after: Sequence[object] = (),
    cache: bool | Cache = False,
    pickle: bool = False,
    when: object = None,
    run_if: RunIfName = "all_succeeded",
    priority: int | None = None,
    limits: Limit | Sequence[Limit] | None = None,
    description: str = "",
) -> StepDecorator: ...
def step(
    fn: Any = None,
    /,
    *,
    name: str | None = None,
    queue: str | None = None,
    executor: Executor | None = None,
    outputs: Sequence[str] | None = None,
    retries: int | Retry = 0,
    timeout_s: float | None = None,
    on_failure: OnFailureName | None = None,
    after: Sequence[object] = (),
    cache: bool | Cache = False,
    pickle: bool = False,
    when: object = None,
    run_if: RunIfName = "all_succeeded",
    priority: int | None = None,
    limits: Limit | Sequence[Limit] | None = None,
    description: str = "",
) -> Any:
    """Make a step of a function at module level: `@step` or `@step(retries=3, …)`.

    Args:
        name: what its steps are named after (`name`, `name-2`, …); default: the function's name.
        queue: where workers pull it from; default: the pipeline's queue.
        executor: "inline" (of an `async def`: in a loop), "process" (the default of a `def`: in a process that runs
            nothing else meanwhile and can be killed), or "thread" (of a `def`: cannot be killed, starts sooner).
        outputs: names of the parts of a returned tuple or dict, where no TypedDict or NamedTuple names them.
        retries: how often a failed attempt is followed by another, or a `Retry(...)`.
        timeout_s: seconds that one attempt may run; the time in the queue does not count.
        on_failure: "fail" (the default): what needs it is skipped and the run fails; "skip" (the default of an
            `on_exit` handler): the same, but the run may succeed; "continue": what needs it runs and gets None.
        after: names of steps that must have ended well before it, beside those whose outputs it takes.
        cache: True, or a `Cache(...)`: a result is kept and used again for a step with the same code, environment and
            arguments.
        when: a handle, or a comparison of handles (`score > 0.9`, combined with `&`, `|` and `not_()`): if it is false
            the step is skipped, for the reason `condition`.
        run_if: what the ends of the steps before it must be, when all of them have ended: "all_succeeded" (the
            default), "all_done", "any_succeeded", "any_failed", "none_failed", "all_failed", or "always", which is a
            finaliser: it runs also when the run is cancelled. A value that is not there is None to it.
        priority: 0 (first) to 9 (last): which launches leave for a queue first; default: its run's.
        limits: a `Mutex`, `Semaphore` or `Rate`, or several in a tuple: what it shares with steps of other runs; an
            attempt is launched when it has all of them.
        pickle: whether arguments and output may be pickles where nothing else can carry them; workers have to allow
            it, too (`evpipe worker --allow-pickle`).

    Raises:
        UsageError: if the function cannot be a step or an option is not allowed.

    """

    def decorate(fn: object) -> Step[..., Any]:
        if isinstance(fn, Step):
            raise UsageError(f"{fn!r} is a step already: {fn.__name__}.options(...) gives it other options")
        function = check_step_function(fn)
        given = {
            "queue": queue,
            "executor": executor,
            "outputs": outputs,
            "retries": retries,
            "timeout_s": timeout_s,
            "on_failure": on_failure,
            "after": after,
            "cache": cache,
            "pickle": pickle,
            "when": when,
            "run_if": run_if,
            "priority": priority,
            "limits": limits,
            "description": description,
        }
        return make_step(function, name_for("step", function, name), given)

    return decorate if fn is None else decorate(fn)


def make_step(fn: Callable[..., Any], name: str, given: Mapping[str, object]) -> Step[..., Any]:
    """Make a step of a function that was checked; options that are not given are at their defaults."""
    options = check_options({"executor": None, **given}, f"step {name!r}", executors=executors_of(fn))
    check_ignored(options.get("cache"), inspect.signature(fn), f"step {name!r}")
    return (CoroutineStep if inspect.iscoroutinefunction(fn) else FunctionStep)(fn, name, StepOptions(**options))


def check_ignored(policy: CachePolicy | None, signature: inspect.Signature, where: str) -> None:
    """Refuse a name in `Cache(ignore=…)` that is none of the function's parameters."""
    takes = signature.parameters
    if policy is None:
        return
    kinds = {p.kind for p in takes.values()}
    for name in policy.ignore:
        if name not in takes:
            if inspect.Parameter.VAR_KEYWORD in kinds:
                continue
            raise UsageError(f"{where}: Cache(ignore=…) names {name!r}, which it does not take{nearest(name, takes)}")
        kind = takes[name].kind
        by_name = kind is kind.KEYWORD_ONLY or (
            kind is kind.POSITIONAL_OR_KEYWORD and inspect.Parameter.VAR_POSITIONAL not in kinds
        )
        if not by_name:
            raise UsageError(
                f"{where}: Cache(ignore=…) names {name!r}, which may come by position: make it keyword-only, "
                "after a `*` in the signature"
            )
