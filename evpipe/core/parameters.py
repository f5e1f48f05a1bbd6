"""Typed parameters of a pipeline, and the check of the values given for them.

A parameter's type is kept as data (`ParameterType`), not as a Python class: the graph travels, and
the controller checks a raw submit with the same code and the same sentence as the caller's process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from evpipe.core.artifact import Artifact
from evpipe.core.bindings import TREE_DEPTH_MAX
from evpipe.core.names import NAME_LENGTH_MAX, check_name, nearest, repr_of
from evpipe.errors import UsageError

_SCALARS: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (float, int),
    "str": (str,),
    "bytes": (bytes,),
    "none": (type(None),),
}
#: Kinds of artifacts that may be of any type.
_UNOPENED = ("value", "pickle")
KINDS = (*_SCALARS, "path", "any", "list", "tuple", "dict", "union", "literal")


@dataclass(frozen=True, slots=True)
class ParameterType:
    """What values a parameter takes.

    `kind` is one of `KINDS`. `inner` holds the element type of `list`, `dict` (of its values) and `tuple`
    (any length), or the alternatives of `union`; `values` holds those of `literal`. A `path` is one of a file or a
    folder, whose content travels: where the run is, it is an artifact.
    """

    kind: str = "any"
    inner: tuple[ParameterType, ...] = ()
    values: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"a parameter's type must be one of {', '.join(KINDS)}, not {self.kind!r}")

    def __str__(self) -> str:
        if self.kind == "union":
            return " | ".join(str(t) for t in self.inner)
        if self.kind == "literal":
            return " or ".join(repr(v) for v in self.values)
        if self.kind == "tuple" and self.inner:
            return f"tuple[{self.inner[0]}, ...]"
        if self.kind == "dict" and self.inner:
            return f"dict[str, {self.inner[0]}]"
        return self.kind + (f"[{self.inner[0]}]" if self.inner else "")

    def problem(self, value: Any, at: str, depth: int = 0) -> str | None:
        """Say what is wrong with a value, or None. `at` names where it stands."""
        if depth > TREE_DEPTH_MAX:
            return f"{at} is nested deeper than {TREE_DEPTH_MAX} levels"
        if isinstance(value, Artifact) and value.kind in _UNOPENED:
            # What a step gave, and was large: nobody opens it to see, so it is taken.
            return None
        if not self._takes(value, at, depth):
            return f"{at} must be {self}, not {_shown(value)}"
        if self.inner and self.kind in ("list", "tuple", "dict"):
            for key, item in value.items() if self.kind == "dict" else enumerate(value):
                found = self.inner[0].problem(item, f"{at}[{key!r}]", depth + 1)
                if found:
                    return found
        return None

    def taken(self, value: Any) -> Any:
        """Give a value that has no problem as the steps get it: the same one, if it is of this type as it is.

        An int becomes the float, and a list the tuple, that was declared: both are what other languages, and JSON,
        write for it. Of alternatives the one counts that takes the value as it is.
        """
        if isinstance(value, Artifact):
            return value
        if self.kind == "float":
            return float(value) if isinstance(value, int) else value
        if self.kind == "union":
            made = [option.taken(value) for option in self.inner if option.problem(value, "") is None]
            return value if any(found is value for found in made) else made[0]
        if self.kind not in ("list", "tuple", "dict"):
            return value
        inner = self.inner[0] if self.inner else ParameterType()
        before = list(value.values() if self.kind == "dict" else value)
        after = [inner.taken(child) for child in before]
        if all(one is other for one, other in zip(before, after, strict=True)):
            return tuple(value) if self.kind == "tuple" and not isinstance(value, tuple) else value
        if self.kind == "dict":
            return dict(zip(value, after, strict=True))
        return tuple(after) if self.kind == "tuple" else after

    def _takes(self, value: Any, at: str, depth: int) -> bool:
        """Say whether the value is of this kind, not looking at its elements."""
        if self.kind == "any":
            return True
        if self.kind == "literal":
            # 1, 1.0 and True are equal in Python but are three different values here.
            return any(type(v) is type(value) and v == value for v in self.values)
        if self.kind == "union":
            return any(t.problem(value, at, depth + 1) is None for t in self.inner)
        if self.kind == "path":
            # By what it can do: paths are not of this layer.
            is_path = hasattr(type(value), "__fspath__") and not isinstance(value, (str, bytes))
            return is_path or (isinstance(value, Artifact) and value.kind in ("file", "folder"))
        if self.kind == "float" and isinstance(value, int) and not _fits_float(value):
            return False
        if self.kind in _SCALARS:
            return isinstance(value, _SCALARS[self.kind]) and (self.kind == "bool" or not isinstance(value, bool))
        if self.kind == "dict":
            return isinstance(value, dict) and all(isinstance(key, str) for key in value)
        return isinstance(value, list if self.kind == "list" else (tuple, list))


def _fits_float(value: int) -> bool:
    try:
        float(value)
    except OverflowError:
        return False
    return True


def _shown(value: Any) -> str:
    text = repr_of(value)
    return f"{text if len(text) <= 60 else text[:57] + '…'} ({type(value).__name__})"


class _Required(Enum):
    """An enum, so that a copied or pickled graph still holds the same one."""

    REQUIRED = "REQUIRED"

    def __repr__(self) -> str:
        return "REQUIRED"


#: The default of a parameter that has none.
REQUIRED = _Required.REQUIRED


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    name: str
    type: ParameterType = ParameterType()
    #: Used when no value is given; `REQUIRED` if one must be.
    default: Any = REQUIRED


def check_parameters(parameters: Sequence[Parameter], given: Mapping[str, Any], *, of: str) -> dict[str, Any]:
    """Give the value of every parameter: the given one or its default.

    Args:
        of: the pipeline's name, for messages.

    Returns:
        One entry per parameter, in their order.

    Raises:
        UsageError: if one is unknown (the nearest name is suggested), missing or of the wrong type.

    """
    check_known(parameters, given, of=of)
    values: dict[str, Any] = {}
    for parameter in parameters:
        value = given.get(parameter.name, parameter.default)
        if value is REQUIRED:
            raise UsageError(f"pipeline {of!r} needs the parameter {parameter.name!r} ({parameter.type})")
        problem = parameter.type.problem(value, f"parameter {parameter.name!r} of pipeline {of!r}")
        if problem:
            raise UsageError(problem)
        values[parameter.name] = parameter.type.taken(value)
    return values


def check_known(parameters: Sequence[Parameter], given: Iterable[str], *, of: str) -> None:
    """Refuse values for parameters that there are not; suggests the nearest name."""
    known = {p.name: p for p in parameters}
    for name in given:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UsageError(f"pipeline {of!r} has no parameter {str(name)!r}{nearest(str(name), known)} ({has})")


def check_parameter_names(parameters: Sequence[Parameter]) -> None:
    """Refuse illegal and repeated names."""
    seen: set[str] = set()
    for parameter in parameters:
        if not parameter.name.isidentifier() or len(parameter.name) > NAME_LENGTH_MAX:
            check_name("parameter", parameter.name)
        if parameter.name in seen:
            raise UsageError(f"parameter {parameter.name!r} is there twice")
        seen.add(parameter.name)
