"""`Build`: the graph while a pipeline's body runs.

A context variable holds the build of the body that is running, so a step call knows whether it is the
plain function or adds a step. A build lives for one call of the body; its handles die with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from inspect import BoundArguments, Parameter
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from evpipe.core.bindings import TREE_DEPTH_MAX, OutputRef, Tree
from evpipe.core.conditions import Condition
from evpipe.core.graph import STEPS_MAX, Step
from evpipe.core.lineage import Child
from evpipe.core.names import NAME_LENGTH_MAX
from evpipe.errors import LimitExceeded, UsageError
from evpipe.sdk.children import child_of, count_steps
from evpipe.sdk.condition import Branches, read_condition
from evpipe.sdk.condition import Condition as ConditionHandle
from evpipe.sdk.handle import ExitHandle, Handle, ParameterHandle, Placeholder
from evpipe.sdk.mapping import Unmapped
from evpipe.sdk.shape import Shape

if TYPE_CHECKING:
    from evpipe.sdk.definition import AnyPipeline

_LEAVES = frozenset({type(None), bool, int, float, str, bytes})
_CONTAINERS = (list, tuple, dict, set, frozenset)
_PLACEHOLDERS = frozenset({Handle, ParameterHandle})

#: Type of a value -> what makes a tree of it, given the value and the name of its place for messages.
Readers: TypeAlias = Mapping[type, Callable[[Any, str], Tree]]
_NO_READERS: Readers = {}
_current: ContextVar[Build | None] = ContextVar("evpipe_build", default=None)


def current_build() -> Build | None:
    """Give the build of the pipeline body that is running here, if one is."""
    return _current.get()


class Build:
    """The steps that a pipeline's body has added so far. Enter it around the body."""

    #: What to do about a name that another step has.
    rename: ClassVar[str] = "give this one another name, or none, then it gets a free one"

    def __init__(self, pipeline: str, queue: str) -> None:
        self.pipeline = pipeline
        #: For steps that name none.
        self.queue = queue
        #: In the order of their calls; keys are their names.
        self.steps: dict[str, Step] = {}
        #: Whether the body has returned or raised.
        self.ended = False
        #: Base of automatic names -> a number up to which all are taken, so that n calls do not cost n squared.
        self._numbers: dict[str, int] = {}
        self._token: Token[Build | None] | None = None

    def __enter__(self) -> Build:
        self._token = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._token is not None
        _current.reset(self._token)
        self.ended = True

    def automatic_name(self, base: str) -> str:
        """Give the first free name of `train`, `train-2`, `train-3`, …"""
        if base not in self.steps:
            return base
        number = self._numbers.get(base, 1)
        name = base
        while name in self.steps:
            number += 1
            suffix = f"-{number}"
            name = base[: NAME_LENGTH_MAX - len(suffix)] + suffix
        self._numbers[base] = number - 1
        return name

    def check_free(self, name: str) -> str:
        """Return a name that was asked for, if no step has it.

        Raises:
            UsageError: if one has.

        """
        if name in self.steps:
            raise UsageError(f"pipeline {self.pipeline!r} has a step named {name!r} already: {self.rename}")
        return name

    def add(self, step: Step, shape: Shape) -> Handle:
        """Add a step whose name is free; give the handle of its value.

        Raises:
            LimitExceeded: if there are `STEPS_MAX` already: a body that never ends must not fill the memory.

        """
        if len(self.steps) >= STEPS_MAX:
            raise LimitExceeded(
                f"pipeline {self.pipeline!r} has more than {STEPS_MAX:,} steps: at most {STEPS_MAX:,} are allowed",
                limit="STEPS_MAX",
                found=len(self.steps) + 1,
                allowed=STEPS_MAX,
            )
        count_steps(self.pipeline)
        self.steps[step.name] = step
        return Handle(self, OutputRef(step.name), shape)

    def arguments(self, bound: BoundArguments, step: str) -> dict[str, Tree]:
        """Make the argument trees of a call: by name, and under "*" a list of what only a position can give."""
        positional: list[Tree] = []
        named: dict[str, Tree] = {}
        signature = bound.signature.parameters
        # With *args filled, all before them were given by position and must be so again.
        by_position = any(
            p.kind is Parameter.VAR_POSITIONAL and bound.arguments.get(p.name) for p in signature.values()
        )
        readers = self.argument_readers(step)
        for name, value in bound.arguments.items():
            kind = signature[name].kind
            tree = self.tree(value, f"argument {name!r} of step {step!r}", readers)
            if kind is Parameter.VAR_POSITIONAL:
                positional.extend(tree)
            elif kind is Parameter.POSITIONAL_ONLY or (by_position and kind is Parameter.POSITIONAL_OR_KEYWORD):
                positional.append(tree)
            elif kind is Parameter.VAR_KEYWORD:
                for keyword in tree:
                    if keyword.startswith("*"):
                        raise UsageError(f"step {step!r}: a keyword argument cannot be named {keyword!r}")
                named.update(tree)
            else:
                named[name] = tree
        return {"*": positional, **named} if positional else named

    def child(self, pipeline: AnyPipeline[..., Any], arguments: Mapping[str, Tree], _step: str) -> Child:
        """Give a pipeline as the child of a step, with these arguments."""
        return child_of(pipeline, arguments)

    def argument_readers(self, _step: str) -> Readers:
        """Say what is read in the arguments of a step: nothing, a text is a text."""
        return _NO_READERS

    def stands_for_value(self, given: object) -> bool:
        """Say whether an argument stands for a value that is not there yet."""
        return isinstance(given, (Placeholder, Branches))

    def parents(self, after: tuple[Handle | str, ...], where: str) -> tuple[str, ...]:
        """Give the names of the steps in an `after=` option, each once."""
        names = (item if isinstance(item, str) else self._own(item, f"{where}: after").step for item in after)
        return tuple(dict.fromkeys(names))

    def condition(self, given: object, where: str) -> Condition | None:
        """Read the option `when` of a step.

        Raises:
            UsageError: if it is none, or has a handle of another build in it.
        """
        return read_condition(given, lambda value: self.tree(value, f"{where}: when"), where)

    def tree(self, value: Any, where: str, readers: Readers = _NO_READERS, depth: int = 0) -> Tree:
        """Copy a value with a reference for every handle in it.

        Copied, because the body may go on to change its list after the call.

        Args:
            where: names the value in messages.
            readers: for values that stand for others here.

        Raises:
            UsageError: for a handle of another build, or at a place where it cannot stand.
            LimitExceeded: if it is nested deeper than `TREE_DEPTH_MAX` (a list that contains itself is, too).

        """
        cls: Any = type(value)
        if cls in readers:
            return readers[cls](value, where)
        if cls in _LEAVES:
            return value
        if cls in _PLACEHOLDERS:
            return self._own(value, where)
        if cls is Branches:
            return value.tree(lambda handle: self._own(handle, where))
        if cls is ExitHandle:
            return value._ref
        if cls is Unmapped:
            raise UsageError(f"{where}: unmapped(...) is for arguments of .map(...)")
        if cls is ConditionHandle:
            raise UsageError(f"{where}: {value!r} is for when=…, it is no value that can be passed on")
        if not issubclass(cls, _CONTAINERS):
            return value
        if depth >= TREE_DEPTH_MAX:
            raise LimitExceeded(
                f"{where} is nested deeper than {TREE_DEPTH_MAX} levels (or contains itself)",
                limit="TREE_DEPTH_MAX",
                found=depth + 1,
                allowed=TREE_DEPTH_MAX,
            )
        if cls is dict:
            self._refuse_references(value, where, _NO_READERS, "as a key of a dict: only its values may be handles")
            return {key: self.tree(child, where, readers, depth + 1) for key, child in value.items()}
        if cls is list or cls is tuple or (issubclass(cls, tuple) and hasattr(cls, "_fields")):
            children = [self.tree(child, where, readers, depth + 1) for child in value]
            return children if cls is list else tuple(children) if cls is tuple else cls(*children)
        # A set, or a class derived from list or dict: a value like any other, but not one to put a handle into.
        inside = value.values() if issubclass(cls, dict) else value
        self._refuse_references(inside, where, readers, f"inside a {cls.__name__}: use a list, tuple or dict")
        return value

    def foreign(self, handle: Placeholder) -> str:
        """Say why a handle of this build cannot be used where it is used."""
        state = "is from a build that has ended" if self.ended else "is from another pipeline"
        return f"{handle!r} {state}: a handle can only be used in the body of its own pipeline, while that is built"

    def _own(self, handle: Any, where: str) -> Any:
        """Give the reference of a placeholder, which must be one of this build."""
        if handle._build is not self or self.ended:
            raise UsageError(f"{where}: {handle._build.foreign(handle)}")
        return handle._ref

    @staticmethod
    def _refuse_references(values: Any, where: str, readers: Readers, problem: str) -> None:
        for value in values:
            cls = type(value)
            if cls in _PLACEHOLDERS or (cls in readers and type(readers[cls](value, where)) is not cls):
                raise UsageError(f"{where}: {value!r} cannot stand {problem}")


def refuse_handles(args: tuple[Any, ...], kwargs: Mapping[str, Any], where: str) -> None:
    """Refuse handles as arguments of a plain call, where no pipeline is being built."""
    for value in (*args, *kwargs.values()):
        if type(value) in _PLACEHOLDERS:
            raise UsageError(f"{where}: {value._build.foreign(value)}")
