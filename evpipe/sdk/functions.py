"""Which functions can be steps, and how a worker finds one again.

A worker imports a module and takes a name from it. So a step's function must be what a name of its
module stands for; everything else is refused here, when it is decorated, with the way out.
"""

from __future__ import annotations

import functools
import inspect
import linecache
import os
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, Final

from evpipe.core.names import NAME_LENGTH_MAX, check_name
from evpipe.errors import UsageError

#: Names of functions of steps that were typed into an interpreter or a notebook: what is saved of that must have them.
TYPED_STEPS: Final[set[str]] = set()
#: What the interpreter of Python 3.13 and later calls what is typed into it.
_TYPED: Final = re.compile(r"<python-input-(\d+)>")

_BY_NAME = "a worker finds a step by its module and name"


def check_step_function(fn: object, cannot: str = "@step cannot decorate") -> Callable[..., Any]:
    """Return `fn` if a worker can find it by name and a call of it gives one value.

    Args:
        cannot: how the message starts; what the function is follows.

    Raises:
        UsageError: if not; says what it is and what to write instead.

    """
    if not isinstance(fn, types.FunctionType):
        raise UsageError(f"{cannot} {_not_a_function('@step', fn)}")
    name = f"{fn.__module__}.{fn.__qualname__}"
    if fn.__name__ == "<lambda>":
        raise UsageError(f"{cannot} a lambda ({name}): {_BY_NAME}; write a `def` at module level")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise UsageError(f"{cannot} the generator function {name}: a step gives one value; return a list")
    if "<locals>" in fn.__qualname__:
        raise UsageError(
            f"{cannot} {name}, which is defined inside a function: {_BY_NAME}; move it to module level "
            "(where it comes from a decorator below @step, that one needs functools.wraps)"
        )
    if "." in fn.__qualname__:
        raise UsageError(
            f"{cannot} {name}, which is defined in a class: {_BY_NAME}; "
            "write a function at module level that takes the object's data as arguments"
        )
    if not fn.__module__ or not fn.__qualname__.isidentifier():
        raise UsageError(f"{cannot} {name}, which has no name in a module: {_BY_NAME}; write a `def`")
    return fn


def check_pipeline_function(fn: object) -> Callable[..., Any]:
    """Return `fn` if its call can be the body of a pipeline; it may be local: only its graph travels.

    Raises:
        UsageError: if not; says what it is and what to write instead.

    """
    if not isinstance(fn, types.FunctionType):
        raise UsageError(f"@pipeline cannot decorate {_not_a_function('@pipeline', fn)}")
    if inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn):
        raise UsageError(
            f"@pipeline cannot decorate `async def {fn.__name__}`: write it as `def`; its steps may be `async def`"
        )
    if inspect.isgeneratorfunction(fn):
        raise UsageError(f"@pipeline cannot decorate the generator function {fn.__name__}: return the value instead")
    return fn


def name_for(what: str, fn: Callable[..., Any], given: str | None) -> str:
    """Give the name of a step or a pipeline: the one given, else the function's.

    Args:
        what: "step" or "pipeline".

    Raises:
        UsageError: if it is not allowed; for a function's name with the decorator line that helps.

    """
    if given is not None:
        return check_name(what, given)
    try:
        return check_name(what, fn.__name__)
    except UsageError as error:
        legal = re.sub(r"[^A-Za-z0-9_-]+", "-", fn.__name__).strip("_-")[:NAME_LENGTH_MAX] or what
        raise UsageError(f"{error}; give it one: @{what}(name={legal!r})") from None


def code_of(fn: Callable[..., Any]) -> dict[str, Any]:
    """Say where a worker finds a step's function, as the `code` of a step in a graph."""
    code = {"kind": "path", "module": fn.__module__, "name": fn.__qualname__}
    if fn.__module__ == "__main__":
        # Every script is __main__ to itself; its file's name tells them apart. Not its path: the same script in
        # another folder or on another machine makes the same graph.
        code["file"] = os.path.basename(file_of(namespace_of(fn)))  # noqa: PTH119 - no pathlib here
        if not code["file"]:
            TYPED_STEPS.add(fn.__qualname__)
    return code


def file_of(space: Mapping[str, Any]) -> str:
    """Give the file that `__main__` is, or "" if it was typed.

    Args:
        space: its names.
    """
    # Python 3.13's interpreter has its own file and name there.
    own = str(getattr(space.get("__spec__"), "name", "")).partition(".")[0]
    return "" if own == "_pyrepl" else str(space.get("__file__") or "")


def has_source(fn: Callable[..., Any]) -> bool:
    """Say whether other processes can have a function: it is in a file, or what was typed can be saved as one."""
    if fn.__module__ != "__main__":
        return True
    space = namespace_of(fn)
    place = getattr(getattr(inspect.unwrap(fn), "__code__", None), "co_filename", "")
    if file_of(space):
        # Not what was typed after a script has ended, as with `python -i`.
        return not _TYPED.fullmatch(place)
    entry: Any = linecache.cache.get(place)
    # One of a file, or of nobody knows what, has no lines yet.
    text = "".join(entry[2]).rstrip() if entry is not None and len(entry) > 2 else ""
    return bool(text) and any(cell.rstrip() == text for cell in reversed(cells_of(space)))


def cells_of(space: Mapping[str, Any]) -> list[str]:
    """Give what was typed, in the order in which it was run.

    Args:
        space: the names of `__main__`.

    Returns:
        The cells of IPython and Jupyter, with magics as the calls that they are; or what Python's own interpreter
        remembers. Empty where neither is there.
    """
    cells = space.get("_ih")
    if isinstance(cells, list):
        return [cell for cell in cells if isinstance(cell, str)]
    found = [(int(match[1]), name) for name in list(linecache.cache) if (match := _TYPED.fullmatch(name))]
    return ["".join(linecache.getlines(name)) for _, name in sorted(found)]


def namespace_of(fn: Callable[..., Any]) -> dict[str, Any]:
    """Give the globals of the module in which the function was written, below any functools.wraps."""
    found: dict[str, Any] = getattr(inspect.unwrap(fn), "__globals__", {})
    return found


def _not_a_function(decorator: str, found: object) -> str:
    if isinstance(found, functools.partial):
        inner = getattr(found.func, "__name__", repr(found.func))
        return f"a functools.partial of {inner}: write a `def` that calls {inner} with these arguments"
    if isinstance(found, type):
        return f"the class {found.__name__}: write a `def` that makes and returns what is needed"
    if isinstance(found, (staticmethod, classmethod, types.MethodType)):
        name = found.__func__.__qualname__
        return f"the method {name}: write a function at module level that takes the object's data as arguments"
    if isinstance(found, (types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType)):
        return f"the builtin {found.__qualname__}: write a `def` that calls it"
    if callable(found):
        return f"an object of type {type(found).__name__}: write a `def` that calls it"
    return f"{found!r}: options are given by keyword, as in {decorator}(name='daily')"
