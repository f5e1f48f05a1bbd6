"""One annotation at a time, evaluated only when it is needed.

`typing.get_type_hints` evaluates all annotations of a function and fails if one of them cannot be: a name
imported under TYPE_CHECKING would cost every other annotation its meaning. Nothing here ever fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, Final, ForwardRef, get_args, get_origin

from evpipe.sdk.functions import namespace_of

#: A string may evaluate to a string: `"'Fit'"` under `from __future__ import annotations`. No sane one does so longer.
_STRINGS_MAX = 4


class Unresolved(Enum):
    UNRESOLVED = "unresolved"


#: What `evaluate` gives for an annotation that is absent or names something that does not exist at run time.
UNRESOLVED: Final = Unresolved.UNRESOLVED


def evaluate(annotation: Any, namespace: dict[str, Any]) -> Any:
    """Make the object of an annotation that may be a string; what is inside its brackets may stay one.

    Args:
        namespace: globals of the module in which it was written.

    Returns:
        The object, an alias replaced by what it stands for and `Annotated` by its type; or `UNRESOLVED`.

    """
    for _ in range(_STRINGS_MAX):
        if isinstance(annotation, ForwardRef):
            annotation = annotation.__forward_arg__
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, namespace)  # noqa: S307 - as typing.get_type_hints does
            except Exception:  # noqa: BLE001 - the text may do anything; a guess fails softly
                return UNRESOLVED
        elif get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif type(annotation).__name__ == "TypeAliasType":  # `type X = ...`, from Python 3.12
            annotation = annotation.__value__
        elif hasattr(annotation, "__supertype__"):  # NewType
            annotation = annotation.__supertype__
        else:
            return annotation
    return UNRESOLVED


def return_annotation(fn: Callable[..., Any]) -> Any:
    """Evaluate the return annotation of a function."""
    return evaluate(getattr(fn, "__annotations__", {}).get("return", UNRESOLVED), namespace_of(fn))


def class_namespace(cls: type) -> dict[str, Any]:
    """Give the globals of the module in which a class was written."""
    module = sys.modules.get(cls.__module__)
    return vars(module) if module is not None else {}
