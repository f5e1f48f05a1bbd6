"""The parameters of a pipeline: from its signature, and from text on a command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evpipe.core.parameters import REQUIRED, Parameter, ParameterType
from evpipe.errors import UsageError
from evpipe.sdk.functions import namespace_of
from evpipe.sdk.parameter_types import parameter_type


def parameters_of(fn: Callable[..., Any], signature: inspect.Signature, of: str) -> tuple[Parameter, ...]:
    """Read the parameters of a pipeline's function, each annotation alone.

    Args:
        of: the pipeline's name, for messages.

    Raises:
        UsageError: if a default is not of its parameter's type, or a type cannot be one of a parameter.

    """
    namespace = namespace_of(fn)
    return tuple(
        make_parameter(
            name,
            Any if found.annotation is found.empty else found.annotation,
            REQUIRED if found.default is found.empty else found.default,
            namespace,
            of,
        )
        for name, found in signature.parameters.items()
    )


def make_parameter(name: str, annotation: Any, default: Any, namespace: dict[str, Any], of: str) -> Parameter:
    """Make one parameter.

    Args:
        default: `REQUIRED` if it has none.
        namespace: globals of the module in which the annotation was written.
        of: the pipeline's name, for messages.

    Raises:
        UsageError: if the default is not of its type, or the type cannot be one of a parameter.

    """
    where = f"parameter {name!r} of pipeline {of!r}"
    kind = parameter_type(annotation, namespace, where)
    problem = None if default is REQUIRED else kind.problem(default, f"the default of {where}")
    if problem:
        raise UsageError(problem)
    return Parameter(name=name, type=kind, default=default)


def parse_parameter(parameter: Parameter, text: str) -> Any:
    """Read the value of a parameter from text, as a command line gives it.

    Text for a `str` is taken as it is, for `bytes` as UTF-8, for a `Path` as the path of a file or a folder;
    everything else is JSON. A parameter of type
    "any" takes text that is not JSON as it is; one with alternatives takes the first that fits.

    Raises:
        UsageError: if the text is no value of the parameter's type.

    """
    return parse_value(parameter.type, text, f"parameter {parameter.name!r}")


def parse_value(kind: ParameterType, text: str, what: str) -> Any:
    """Read a value of a type from text, as `parse_parameter` does; `what` names it in the message."""
    value = _parse(kind, text)
    if value is REQUIRED:
        shown = text if len(text) <= 60 else text[:57] + "…"
        raise UsageError(f"{what} must be {kind}: {shown!r} is not ({_how_to_write(kind)})")
    return kind.taken(value)


_ANY = ParameterType("any")


def _parse(kind: ParameterType, text: str) -> Any:
    """Give the value, or `REQUIRED` if the text is none of this type."""
    if kind.kind == "str":
        return text
    if kind.kind == "bytes":
        return text.encode(errors="surrogateescape")
    if kind.kind == "path":
        return Path(text) if text else REQUIRED
    if kind.kind == "union":
        return next((value for inner in kind.inner if (value := _parse(inner, text)) is not REQUIRED), REQUIRED)
    if kind.kind == "literal" and text in kind.values:
        return text
    import json

    try:
        value = _beyond_json(kind, json.loads(text))
    except (ValueError, RecursionError):
        return text if kind.kind == "any" else REQUIRED
    return value if kind.problem(value, "") is None else REQUIRED


def _beyond_json(kind: ParameterType, value: Any) -> Any:
    """Make tuples and paths of the JSON lists and texts that stand where the type has them."""
    if kind.kind == "union":
        options = ((inner, _beyond_json(inner, value)) for inner in kind.inner)
        return next((made for inner, made in options if inner.problem(made, "") is None), value)
    if kind.kind == "path":
        return Path(value) if value and isinstance(value, str) else value
    inner = kind.inner[0] if kind.inner else _ANY
    if isinstance(value, dict) and kind.kind == "dict":
        return {key: _beyond_json(inner, child) for key, child in value.items()}
    if isinstance(value, list) and kind.kind in ("list", "tuple"):
        children = [_beyond_json(inner, child) for child in value]
        return tuple(children) if kind.kind == "tuple" else children
    return value


def _how_to_write(kind: ParameterType) -> str:
    """Give the form that the text of a type has."""
    forms = {
        "bool": "write true or false",
        "int": "write a whole number, as in 5",
        "float": "write a number, as in 0.5",
        "none": "write null",
        "path": "write the path of a file or a folder",
        "list": "write JSON, as in [1, 2]",
        "tuple": "write JSON, as in [1, 2]",
        "dict": 'write JSON, as in {"a": 1}',
        "literal": "write one of them",
        "union": "write one of these as JSON",
    }
    return forms[kind.kind]
