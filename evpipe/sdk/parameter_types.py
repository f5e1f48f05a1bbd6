"""From a Python annotation to the type of a parameter, as data that can travel with the graph."""

from __future__ import annotations

import collections.abc
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from evpipe.core.parameters import ParameterType
from evpipe.errors import UsageError
from evpipe.sdk.annotations import UNRESOLVED, evaluate

_SCALARS: dict[Any, str] = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    bytes: "bytes",
    None: "none",
    types.NoneType: "none",
}
#: Abstract sequences take both: what a caller types as a list, a default usually has as a tuple.
_SEQUENCES = (collections.abc.Sequence, collections.abc.Collection, collections.abc.Iterable)
_MAPPINGS = (dict, collections.abc.Mapping)
_ANY = ParameterType("any")


def parameter_type(annotation: Any, namespace: dict[str, Any], where: str) -> ParameterType:
    """Read the annotation of a parameter. What is not known, or cannot be resolved, is "any".

    Args:
        namespace: globals of the module in which it was written.
        where: names the parameter in messages.

    Raises:
        UsageError: for a type whose values can never be parameters.

    """
    annotation = evaluate(annotation, namespace)
    if annotation is UNRESOLVED:
        return _ANY
    if annotation is None or isinstance(annotation, type):
        scalar = _SCALARS.get(annotation)
        if scalar is not None:
            return ParameterType(scalar)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        if any(isinstance(value, Enum) for value in arguments):
            raise UsageError(_no_enum(where, "a Literal of enum members"))
        return ParameterType("literal", values=arguments)
    if origin in (Union, types.UnionType):
        return ParameterType("union", tuple(parameter_type(inner, namespace, where) for inner in arguments))
    cls = origin if isinstance(origin, type) else annotation
    if not isinstance(cls, type):
        return _ANY
    if issubclass(cls, Path):
        return ParameterType("path")
    if issubclass(cls, Enum):
        raise UsageError(_no_enum(where, f"the enum {cls.__name__}"))
    if typing.is_typeddict(cls):
        return ParameterType("dict")
    if cls in _MAPPINGS:
        if not arguments:
            return ParameterType("dict")
        if parameter_type(arguments[0], namespace, where).kind not in ("str", "any"):
            raise UsageError(f"{where} cannot be {annotation}: the keys of a dict must be str")
        return ParameterType("dict", (parameter_type(arguments[1], namespace, where),))
    if cls is tuple:
        return ParameterType("tuple", _tuple_elements(arguments, namespace, where))
    inner = tuple(parameter_type(argument, namespace, where) for argument in arguments[:1])
    if cls is list:
        return ParameterType("list", inner)
    if cls in _SEQUENCES:
        return ParameterType("union", (ParameterType("list", inner), ParameterType("tuple", inner)))
    return _ANY


def _tuple_elements(arguments: tuple[Any, ...], namespace: dict[str, Any], where: str) -> tuple[ParameterType, ...]:
    """Give the one type of all elements: a `tuple[int, str]` takes int and str, its length is not checked."""
    kinds = dict.fromkeys(parameter_type(a, namespace, where) for a in arguments if a is not Ellipsis)
    if len(kinds) > 1:
        return (ParameterType("union", tuple(kinds)),)
    return tuple(kinds)


def _no_enum(where: str, found: str) -> str:
    return f"{where} cannot be {found}: values of an enum are not kept; use Literal['a', 'b'] of plain values"
