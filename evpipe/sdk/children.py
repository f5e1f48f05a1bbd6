"""Pipelines in pipelines: the graph of a pipeline that another one calls.

    call ─▶ arguments ─▶ constants: the body runs with them ────────────▶ graph of the child
                         handles: parameters of that graph ─▶ their values travel in the submit of its run

While a graph is being made there is a `Frame` of it, and of each one around it. A call of a pipeline that is being made
with the same constants and handles is a call of itself: its step says how far up that graph is, and nothing is made.
Equal calls have one graph, which is made once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from evpipe.core.bindings import LEAVES, Tree, references
from evpipe.core.graph import STEPS_MAX, Graph
from evpipe.core.lineage import NESTING_MAX, Child
from evpipe.core.mapping import Mapped, Place
from evpipe.core.parameters import REQUIRED, Parameter
from evpipe.errors import LimitExceeded, UsageError
from evpipe.sdk.mapping import read_mapped
from evpipe.sdk.references import StepReference

if TYPE_CHECKING:
    from evpipe.sdk.definition import AnyPipeline

#: What a graph is made for: the pipeline, and of each parameter its constant, or that it is not known yet.
Call: TypeAlias = tuple[int, tuple[Any, ...]]

_PASSED: Final = "<passed>"
_frame: ContextVar[Frame | None] = ContextVar("evpipe_frame", default=None)


@dataclass(slots=True)
class Shared:
    """What the graphs that are made for one run have in common."""

    #: Steps of all of them.
    steps: int = 0
    #: Graphs that refer to none around them.
    graphs: dict[Call, Graph] = field(default_factory=dict)
    #: Pipelines, and constants that nothing else tells apart, are told apart by identity: so they must stay.
    kept: list[object] = field(default_factory=list)


class Frame:
    """A graph that is being made. Enter it meanwhile.

    Args:
        values: of its parameters; trees with references for those that are not known yet.
        inside: it is made for a step of the one that is being made now; else for a run.
    """

    def __init__(self, pipeline: AnyPipeline[..., Any], values: Mapping[str, Tree], *, inside: bool = False) -> None:
        above = _frame.get() if inside else None
        self.pipeline = pipeline
        self.above = above
        self.depth: int = 0 if above is None else above.depth + 1
        self.shared: Shared = Shared() if above is None else above.shared
        self.call = call_of(pipeline, values)
        #: As far as this many levels up its steps refer to graphs around it.
        self.reach = 0
        self._token: Token[Frame | None] | None = None
        self.shared.kept.append((pipeline, dict(values)))

    def __enter__(self) -> Frame:
        self._token = _frame.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._token is not None
        _frame.reset(self._token)


def count_steps(pipeline: str, count: int = 1) -> None:
    """Take note of more steps.

    Raises:
        LimitExceeded: if there are more than `STEPS_MAX` in all that is made for a run: a body that never ends must not
            fill the memory.
    """
    frame = _frame.get()
    if frame is None:
        return
    frame.shared.steps += count
    if frame.shared.steps > STEPS_MAX:
        raise LimitExceeded(
            f"pipeline {pipeline!r}: there are more than {STEPS_MAX:,} steps in it and the pipelines that it is made "
            f"of: at most {STEPS_MAX:,} are allowed",
            limit="STEPS_MAX",
            found=frame.shared.steps,
            allowed=STEPS_MAX,
        )


def child_of(pipeline: AnyPipeline[..., Any], arguments: Mapping[str, Tree]) -> Child:
    """Give the pipeline as the child of a step in the graph that is being made.

    Args:
        arguments: a tree for every parameter that was given.

    Raises:
        LimitExceeded: if it is nested deeper than `NESTING_MAX`, or is too large.
        UsageError: if its graph cannot be made.
        Exception: whatever its body raises.
    """
    frame = _frame.get()
    assert frame is not None, "only while a graph is being made"
    call = call_of(pipeline, arguments)
    up, seen = 0, frame
    while seen.call != call:
        if seen.above is None:
            return Child(pipeline=pipeline.name, graph=_graph_of(pipeline, arguments, frame, call))
        up, seen = up + 1, seen.above
    # All between refer further up than themselves.
    between = frame
    for levels in range(up, 0, -1):
        between.reach = max(between.reach, levels)
        assert between.above is not None
        between = between.above
    return Child(pipeline=pipeline.name, up=up)


def _graph_of(pipeline: AnyPipeline[..., Any], arguments: Mapping[str, Tree], frame: Frame, call: Call) -> Graph:
    graphs = frame.shared.graphs
    if call in graphs:
        return graphs[call]
    if frame.depth >= NESTING_MAX:
        raise LimitExceeded(
            f"pipeline {pipeline.name!r} is called {NESTING_MAX + 1} levels deep while the graph is being made: at "
            f"most {NESTING_MAX} are allowed. Where it calls itself, let the body stop, or let the value come from a "
            "step: then there is one graph, and `when` says when it stops",
            limit="NESTING_MAX",
            found=frame.depth + 1,
            allowed=NESTING_MAX,
        )
    with Frame(pipeline, arguments, inside=True) as inner:
        graph = pipeline._child_graph(arguments)
    if not inner.reach:
        graphs[call] = graph
    return graph


def call_of(pipeline: AnyPipeline[..., Any], values: Mapping[str, Tree]) -> Call:
    """Say which graph a call makes."""
    by_constants = pipeline._by_constants
    return id(pipeline), tuple((name, _key(values[name])) for name in sorted(values)) if by_constants else ()


def mapped_arguments(
    named: Mapping[str, Any], stands_for_value: Callable[[object], bool], where: str, product: bool, levels: int
) -> tuple[dict[str, Any], Mapped]:
    """Find what a pipeline is mapped over; as `read_mapped`."""
    signature = inspect.Signature([inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in named])
    bound, mapped = read_mapped(signature.bind(**named), stands_for_value, where, product, levels)
    return dict(bound.arguments), mapped


def split_arguments(
    parameters: tuple[Parameter, ...], given: Mapping[str, Tree], of: str, mapped: Collection[Place] = ()
) -> dict[str, Tree]:
    """Give the argument of every parameter, defaults among them.

    Args:
        mapped: those that are mapped over: what an element is given is checked when it begins.

    Raises:
        UsageError: if one is missing, or is a constant that its parameter does not take.
    """
    arguments: dict[str, Tree] = {}
    for parameter in parameters:
        value = given.get(parameter.name, parameter.default)
        if value is REQUIRED:
            raise UsageError(f"pipeline {of!r} needs the parameter {parameter.name!r} ({parameter.type})")
        if parameter.name not in mapped and not is_open(value):
            problem = parameter.type.problem(value, f"parameter {parameter.name!r} of pipeline {of!r}")
            if problem:
                raise UsageError(problem)
            value = parameter.type.taken(value)
        arguments[parameter.name] = value
    return arguments


def is_open(tree: Tree) -> bool:
    """Say whether there is something in a tree that is not known yet."""
    if type(tree) in LEAVES:
        return False
    return any(True for _ in references(tree)) or _is_late(tree)


def _is_late(tree: Tree) -> bool:
    """Say whether there is a text in a tree that names a step which is added later."""
    if isinstance(tree, StepReference):
        return True
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return any(_is_late(child) for child in inner)


def _key(tree: Tree) -> Any:
    return _PASSED if is_open(tree) else _frozen(tree)


def _frozen(value: Any) -> Any:
    """Give what is equal for equal constants: of types that are told by their values, these; else the object itself."""
    cls = type(value)
    if cls in LEAVES:
        # 1, 1.0 and True are equal in Python but are three different values here; so are 0.0 and -0.0.
        return cls, repr(value) if cls is float else value
    if cls is list or cls is tuple:
        return cls, tuple(_frozen(child) for child in value)
    if cls is dict:
        return cls, tuple((_frozen(key), _frozen(child)) for key, child in value.items())
    return cls, id(value)
