"""Conditions: what decides, when a step's inputs are there, whether it runs.

A condition is a value that is true or not, a comparison of two, or several of them combined. The core evaluates it over
outputs and parameters as they are in the log; of what is stored beside the log it knows only that it is there.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from evpipe.core.artifact import Artifact
from evpipe.core.bindings import BindingError, Known, OneOf, OutputRef, ParameterRef, Tree, references, resolve
from evpipe.core.names import repr_of
from evpipe.errors import UsageError

#: Parts of a condition, so that nobody evaluates a million of them for one step.
CONDITION_PARTS_MAX: Final = 1_000
#: Levels of and, or and not in each other.
DEPTH_MAX: Final = 32

_OPERATORS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
OPERATORS: Final = tuple(_OPERATORS)


@dataclass(frozen=True, slots=True)
class IsTrue:
    """A value, taken for true or not as Python takes it."""

    value: Tree


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two values compared by one of `OPERATORS`."""

    operator: str
    left: Tree
    right: Tree


@dataclass(frozen=True, slots=True)
class AllOf:
    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Negation:
    part: Condition


Condition: TypeAlias = IsTrue | Comparison | AllOf | AnyOf | Negation


def condition_trees(condition: Condition) -> Iterator[Tree]:
    """Yield the trees of values in a condition, in order.

    Raises:
        UsageError: if it has more than `CONDITION_PARTS_MAX` parts, or a part that is none.
    """
    stack: list[Any] = [condition]
    count = 0
    while stack:
        count += 1
        if count > CONDITION_PARTS_MAX:
            raise UsageError(f"a condition has more than {CONDITION_PARTS_MAX:,} parts")
        match stack.pop():
            case IsTrue(value):
                yield value
            case Comparison(name, left, right):
                if name not in _OPERATORS:
                    raise UsageError(f"a condition compares by {name!r}: there are {', '.join(_OPERATORS)}")
                yield left
                yield right
            case AllOf(parts) | AnyOf(parts):
                stack.extend(reversed(parts))
            case Negation(part):
                stack.append(part)
            case other:
                raise UsageError(f"{other!r} is not a condition")


def condition_references(condition: Condition) -> Iterator[OutputRef | ParameterRef | OneOf]:
    """Yield every reference in a condition."""
    for tree in condition_trees(condition):
        yield from references(tree)


def holds(condition: Condition, outputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> bool:
    """Say whether a condition is true.

    A value that is not there (of a step that was skipped) is None; None is neither less nor more than anything.

    Raises:
        BindingError: if a value has no such part, or values cannot be compared; says which.
    """
    match condition:
        case IsTrue(tree):
            return _truth(resolve(tree, outputs, parameters), tree)
        case Comparison(name, left, right):
            a, b = resolve(left, outputs, parameters), resolve(right, outputs, parameters)
            return _compared(name, a, b, condition)
        case AllOf(parts):
            return all(holds(part, outputs, parameters) for part in parts)
        case AnyOf(parts):
            return any(holds(part, outputs, parameters) for part in parts)
        case Negation(part):
            return not holds(part, outputs, parameters)


def _truth(value: Any, tree: Tree) -> bool:
    if isinstance(value, Artifact):
        if value.length is None or (value.path and not value.is_list):
            raise BindingError(f"{_shown(tree)} is {value}, which is stored: nobody can say here whether it is true")
        return value.length > 0
    try:
        return bool(value)
    except Exception as error:
        raise BindingError(f"{_shown(tree)} cannot be taken for true or false: {error}") from error


def _compared(name: str, a: Any, b: Any, condition: Comparison) -> bool:
    for value, tree in ((a, condition.left), (b, condition.right)):
        if isinstance(value, Artifact):
            raise BindingError(
                f"{_shown(tree)} is {value}, which is stored: it cannot be compared here; return what decides by itself"
            )
    if (a is None or b is None) and name not in {"==", "!="}:
        return False
    try:
        return bool(_OPERATORS[name](a, b))
    except Exception as error:
        raise BindingError(f"{shown(condition)}: {type(error).__name__}: {error}") from error


def shown(condition: Condition) -> str:
    """Write a condition as a person would."""
    match condition:
        case IsTrue(tree):
            return _shown(tree)
        case Comparison(name, left, right):
            return f"{_shown(left)} {name} {_shown(right)}"
        case AllOf(parts):
            return " & ".join(_bracketed(part) for part in parts)
        case AnyOf(parts):
            return " | ".join(_bracketed(part) for part in parts)
        case Negation(part):
            return f"not {_bracketed(part)}"


def _bracketed(condition: Condition) -> str:
    text = shown(condition)
    return f"({text})" if isinstance(condition, (AllOf, AnyOf, Comparison)) else text


def _shown(tree: Tree) -> str:
    if isinstance(tree, (OutputRef, OneOf)):
        return str(tree)
    if isinstance(tree, ParameterRef):
        return tree.name
    text = repr_of(tree.value if isinstance(tree, Known) else tree)
    return text if len(text) <= 40 else text[:39] + "…"
