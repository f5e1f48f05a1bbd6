"""One annotation at a time, evaluated only when it is needed.

`typing.get_type_hints` evaluates all annotations of a function and fails if one of them cannot be: a name
imported under TYPE_CHECKING would cost every other annotation its meaning. Nothing here ever fails, and what can be
known is: a `tuple[DataFrame, DataFrame]` has two parts whatever a DataFrame is.
"""

from __future__ import annotations

import builtins
import sys
from collections import ChainMap
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, Final, ForwardRef, get_args, get_origin

from evpipe.sdk.functions import namespace_of

#: A string may evaluate to a string: `"'Fit'"` under `from __future__ import annotations`. No sane one does so longer.
_STRINGS_MAX = 4


class Unresolved(Enum):
    UNRESOLVED = "unresolved"


#: What `evaluate` gives for an annotation that is absent or is not an expression of types.
UNRESOLVED: Final = Unresolved.UNRESOLVED


class _Opaque(type):
    """Lets a stand-in be written on as what it stands for would be: `pd.DataFrame`, `Model[int]`, `Model | None`."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __getitem__(cls, _: object) -> Any:
        return cls


class Unknown(metaclass=_Opaque):
    """Stands for a class that is not there at run time."""


class _Names(ChainMap[str, Any]):
    def __missing__(self, _: str) -> Any:
        return Unknown


def evaluate(annotation: Any, namespace: dict[str, Any]) -> Any:
    """Make the object of an annotation that may be a string; what is inside its brackets may stay one.

    Args:
        namespace: globals of the module in which it was written.

    Returns:
        The object, with an alias replaced by what it stands for, `Annotated` by its type and a name that does
        not exist by `Unknown`; or `UNRESOLVED`.

    """
    for _ in range(_STRINGS_MAX):
        if isinstance(annotation, ForwardRef):
            annotation = annotation.__forward_arg__
        if isinstance(annotation, str):
            try:
                # As typing.get_type_hints does, with the same text.
                annotation = eval(annotation, {}, _Names(namespace, vars(builtins)))  # noqa: S307
            except Exception:  # noqa: BLE001 - the text may do anything; a guess fails softly
                return UNRESOLVED
        elif get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif type(annotation).__name__ == "TypeAliasType":  # `type X = ...`, from Python 3.12
            annotation = _value_of_alias(annotation)
        elif hasattr(annotation, "__supertype__"):  # NewType
            annotation = annotation.__supertype__
        else:
            return annotation
    return UNRESOLVED


def _value_of_alias(alias: Any) -> Any:
    try:
        return alias.__value__  # evaluated by this look
    except Exception:  # noqa: BLE001 - as above
        return UNRESOLVED


def return_annotation(fn: Callable[..., Any]) -> Any:
    """Evaluate the return annotation of a function."""
    return evaluate(getattr(fn, "__annotations__", {}).get("return", UNRESOLVED), namespace_of(fn))


def class_namespace(cls: type) -> dict[str, Any]:
    """Give the globals of the module in which a class was written."""
    module = sys.modules.get(cls.__module__)
    return vars(module) if module is not None else {}
