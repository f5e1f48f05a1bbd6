"""What to do instead, for values that people try to pass and that have no encoding."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import threading
import types
from collections.abc import Iterator
from typing import Any, Final

_BASES: Final = (dict, list, tuple, set, frozenset, str, bytes, int, float)
_NUMPY_HINT: Final = "pass it as a list: value.tolist()"
#: By the package that a class is of.
_PACKAGES: Final = {
    "numpy": _NUMPY_HINT,
    "torch": "pass it as a list: value.tolist()",
    "pandas": "pass what is in it: value.to_dict()",
    "polars": "pass what is in it: value.to_dict(as_series=False)",
    "pydantic": "pass what is in it: value.model_dump()",
    "pydantic_core": "pass what is in it",
}


def hint_for(node: Any) -> str:
    """Say what can be passed in place of a value that is refused, or ""."""
    for cls in type(node).__mro__:
        hint = _PACKAGES.get(cls.__module__.partition(".")[0], "")
        if hint:
            return hint
        if cls.__module__ == "evpipe.sdk.handle":
            return "handles are found in lists, tuples and dicts only, and not in keys"
    for known, hint in _HINTS:
        if isinstance(node, known):
            return hint
    for base in _BASES:
        if isinstance(node, base):
            return f"make it a plain one: {base.__name__}(value)"
    if hasattr(type(node), "__attrs_attrs__"):
        return "pass what is in it: attrs.asdict(value)"
    return ""


_HINTS: Final[tuple[tuple[type | tuple[type, ...], str], ...]] = (
    (os.PathLike, "a path names a file of one machine: pass what is in the file, or the path as text: str(value)"),
    (type, "pass its name"),
    (
        (types.FunctionType, types.BuiltinFunctionType, types.MethodType),
        "functions do not travel: pass what they need to a step that calls them",
    ),
    ((types.CoroutineType, asyncio.Future), "await it and pass what it gives"),
    ((types.AsyncGeneratorType,), "collect what it gives in a list"),
    (memoryview, "make it bytes: bytes(value)"),
    ((socket.socket, io.IOBase), "it is open in this process only: open it in the step"),
    (types.ModuleType, "import it in the step"),
    (
        (type(threading.Lock()), type(threading.RLock()), threading.Thread),
        "it is of this process only: make it in the step",
    ),
    (slice, "pass its start, stop and step"),
    (BaseException, "pass what it says: str(value)"),
    (Iterator, "make it a list: list(value)"),
    ((type({}.keys()), type({}.values()), type({}.items())), "make it a list: list(value)"),
)
