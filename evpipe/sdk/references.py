"""The grammar of `${…}`: texts in the arguments of `Pipeline.step` that stand for a value.

`${load.result}` is the whole output of a step, `${train.score}` a named output or key of it, `${train.score.x}` and
`${train[0]}` go deeper, `${pipeline.rows}` is a parameter. A text is one reference or none; `$${` is a literal `${`.
What a reference names may be added later: `builder` looks it up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from evpipe.core.artifact import Key
from evpipe.core.bindings import ParameterRef
from evpipe.errors import UsageError

#: What a reference to a parameter starts with; no step of a `Pipeline` may have this name.
PIPELINE = "pipeline"
#: What stands for the whole output.
RESULT = "result"

_WHOLE = re.compile(r"\$\{([^{}]*)\}\Z")
_OPENING = re.compile(r"(?<!\$)\$\{")
_PARTS = re.compile(r"([^.\[\]]+)((?:\.[^.\[\]]+|\[-?[0-9]{1,9}\])+)\Z")
_PART = re.compile(r"\.([^.\[\]]+)|\[(-?[0-9]+)\]")
_FORMS = "write '${load.result}' (the whole output of step load), '${train.score}', '${train[0]}' or '${pipeline.rows}'"
_LITERAL = "$${ is a literal ${"


@dataclass(frozen=True, slots=True)
class StepReference:
    """A reference to the output of a step, or a part of it, that was not looked up yet."""

    #: As it was written.
    text: str
    #: Names the argument in messages.
    where: str
    step: str
    #: What to take of the output, outermost first; empty: all of it.
    path: tuple[Key, ...]
    #: Whether it was written with `.result`, for the whole output.
    is_whole: bool


def is_reference(text: str) -> bool:
    """Say whether a text has the form of one reference, right or wrong."""
    return _WHOLE.match(text) is not None


def read_reference(text: str, where: str) -> StepReference | ParameterRef | str:
    """Read a text: the reference that it is, or else the literal text.

    Args:
        where: names the argument in messages.

    Raises:
        UsageError: if it has a `${` that starts no reference, or is a reference and more.

    """
    whole = _WHOLE.match(text)
    if whole is None:
        if _OPENING.search(text) is None:
            return text.replace("$${", "${")
        raise UsageError(
            f"{where}: a reference must be all of its text, and {text!r} is not: "
            f"let a step put the text together ({_LITERAL})"
        )
    parts = _PARTS.match(whole[1])
    if parts is None:
        raise UsageError(f"{where}: {text!r} is not a reference: {_FORMS} ({_LITERAL})")
    name = parts[1]
    path: tuple[Key, ...] = tuple(key or int(index) for key, index in _PART.findall(parts[2]))
    if name == PIPELINE:
        if len(path) > 1 or not isinstance(path[0], str):
            raise UsageError(
                f"{where}: {text!r} takes a part of a parameter: pass it whole and take the part in the step"
            )
        return ParameterRef(path[0])
    is_whole = path[0] == RESULT
    return StepReference(text, where, name, path[1:] if is_whole else path, is_whole)
