"""How a step's arguments name values that are not there yet.

A *tree* is a plain value in which, anywhere inside lists, tuples and dicts, an `OutputRef` or a
`ParameterRef` may stand for a value. The graph holds trees; `resolve` makes values of them when the
outputs are known. Trees are no deeper than `TREE_DEPTH_MAX`, so recursion is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from evpipe.core.artifact import Artifact, Key
from evpipe.core.exits import RUN
from evpipe.core.names import for_people, repr_of
from evpipe.errors import LimitExceeded, UsageError

TREE_DEPTH_MAX = 64
TREE_CONTAINERS_MAX = 400_000

#: Types of values in which nothing can be nested.
LEAVES = frozenset({type(None), bool, int, float, str, bytes})

Tree: TypeAlias = Any


class BindingError(UsageError):
    """A reference names a key, index or field that the value does not have."""


@dataclass(frozen=True, slots=True)
class OutputRef:
    """The output of a step, or a part of it; of `RUN`: what an `on_exit` handler is told of the run."""

    step: str
    #: What to take of the output, outermost first; empty: all of it.
    path: tuple[Key, ...] = ()

    def __str__(self) -> str:
        return ("run" if self.step == RUN else for_people(self.step)) + "".join(f"[{key!r}]" for key in self.path)


@dataclass(frozen=True, slots=True)
class OneOf:
    """The first of several outputs that is there: of the branch that was not skipped."""

    options: tuple[OutputRef, ...]

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.options))}"


@dataclass(frozen=True, slots=True)
class ParameterRef:
    """A parameter of the run."""

    name: str


@dataclass(frozen=True, slots=True)
class Known:
    """A value that is taken as it is, whatever is in it. Never in a graph: it is made while a run goes on."""

    value: Any


@dataclass(frozen=True, slots=True)
class Gathered:
    """What the elements of a mapped step gave, in order; None where there is nothing."""

    #: With more than one level, lists of lists.
    values: list[Any]
    levels: int = 1

    def part(self, ref: OutputRef) -> Any:
        """Give what a reference to it stands for: a number is an index, a text is taken of each element.

        Raises:
            BindingError: if there is no such element, or an element has no such part.
        """
        value: Any = self.values
        levels = self.levels
        for depth, key in enumerate(ref.path):
            if levels == 0 or isinstance(key, str):
                return _of_each(value, levels, OutputRef(ref.step, ref.path[depth:]), ref.path[:depth])
            if value is None:
                return None
            try:
                value = value[key]
            except IndexError:
                raise BindingError(_missing(value, ref, depth, "")) from None
            levels -= 1
        return value


def _of_each(value: Any, levels: int, ref: OutputRef, before: tuple[Key, ...]) -> Any:
    if value is None:
        return None
    if levels == 0:
        return select(value, ref, f"the output {OutputRef(ref.step, before)}")
    return [_of_each(child, levels - 1, ref, (*before, i)) for i, child in enumerate(value)]


def references(tree: Tree) -> Iterator[OutputRef | ParameterRef | OneOf]:
    """Yield every reference in a tree, in order, repeated ones repeatedly.

    Raises:
        LimitExceeded: if the tree is deeper than `TREE_DEPTH_MAX` (a list that contains itself is, too), or has
            more than `TREE_CONTAINERS_MAX` lists and dicts (one that is there twice counts twice).

    """
    stack: list[tuple[Tree, int]] = [(tree, 0)]
    containers = 0
    while stack:
        node, depth = stack.pop()
        if isinstance(node, (OutputRef, ParameterRef, OneOf)):
            yield node
            continue
        if isinstance(node, dict):
            inner = list(node.values())
        elif isinstance(node, (list, tuple)):
            inner = list(node)
        else:
            continue
        containers += 1
        if containers > TREE_CONTAINERS_MAX:
            raise LimitExceeded(
                f"arguments have more than {TREE_CONTAINERS_MAX:,} lists and dicts",
                limit="TREE_CONTAINERS_MAX",
                found=containers,
                allowed=TREE_CONTAINERS_MAX,
            )
        if depth >= TREE_DEPTH_MAX:
            raise LimitExceeded(
                f"arguments are nested deeper than {TREE_DEPTH_MAX} levels (or contain themselves)",
                limit="TREE_DEPTH_MAX",
                found=depth + 1,
                allowed=TREE_DEPTH_MAX,
            )
        stack.extend((child, depth + 1) for child in reversed(inner))


def resolve(tree: Tree, outputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> Any:
    """Make the value of a tree.

    Args:
        outputs: the values of the steps that have one; a reference to any other gives None.
        parameters: the run's parameters.

    Raises:
        BindingError: if an output has no such key, index or field, or the run no such parameter.

    """
    if isinstance(tree, OutputRef):
        value = outputs.get(tree.step)
        if type(value) is Gathered:
            return value.part(tree)
        return select(value, tree) if tree.path and tree.step in outputs else value
    if isinstance(tree, Known):
        return tree.value
    if type(tree) in LEAVES:
        return tree
    if isinstance(tree, OneOf):
        for option in tree.options:
            if option.step in outputs:
                return resolve(option, outputs, parameters)
        return None
    if isinstance(tree, ParameterRef):
        if tree.name not in parameters:
            raise BindingError(f"the run has no value for the parameter {tree.name!r}")
        return parameters[tree.name]
    if isinstance(tree, dict):
        return resolve_all(tree, outputs, parameters)
    if isinstance(tree, list):
        return [child if type(child) in LEAVES else resolve(child, outputs, parameters) for child in tree]
    if isinstance(tree, tuple):
        children = [resolve(child, outputs, parameters) for child in tree]
        # Not by its class's own `__new__`, which may be code of a user.
        return tuple.__new__(type(tree), children) if hasattr(tree, "_fields") else tuple(children)
    return tree


def resolve_all(trees: Mapping[str, Tree], outputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Make the values of several trees, as `resolve` does of one."""
    return {key: tree if type(tree) in LEAVES else resolve(tree, outputs, parameters) for key, tree in trees.items()}


def select(value: Any, ref: OutputRef, what: str = "") -> Any:
    """Take the part of a step's output that `ref.path` names; of an artifact, what stands for that part.

    Args:
        what: names the value in the message; "": it is the output of `ref.step`.

    Raises:
        BindingError: naming the reference and what the value does have.

    """
    for depth, key in enumerate(ref.path):
        if isinstance(value, Artifact):
            return value.part(ref.path[depth:])
        try:
            if isinstance(key, str) and isinstance(value, tuple) and key in getattr(value, "_fields", ()):
                value = getattr(value, key)
            elif isinstance(value, dict):
                value = value[key]
            elif isinstance(key, int) and isinstance(value, (list, tuple, str, bytes)):
                value = value[key]
            else:
                raise BindingError(_missing(value, ref, depth, what))
        except (KeyError, IndexError):
            raise BindingError(_missing(value, ref, depth, what)) from None
    return value


def _missing(value: Any, ref: OutputRef, depth: int, what: str) -> str:
    at = what + "".join(f"[{key!r}]" for key in ref.path[:depth]) if what else ""
    at = at or f"the output {OutputRef(ref.step, ref.path[:depth])}"
    key = ref.path[depth]
    if isinstance(value, dict):
        has = "keys " + ", ".join(map(repr_of, list(value)[:12])) if value else "no keys"
    elif hasattr(value, "_fields"):
        has = "fields " + ", ".join(value._fields)
    elif isinstance(value, (list, tuple, str, bytes)):
        has = f"length {len(value)}"
    else:
        has = f"type {type(value).__name__}"
    return f"{at} has no {key!r}: it has {has}"
