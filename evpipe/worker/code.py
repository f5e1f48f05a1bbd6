"""Finding the function that a launch names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evpipe.errors import UsageError


class CodeNotFound(UsageError):
    """The function of a step cannot be found by its name in this process."""


def find_function(code: Mapping[str, Any]) -> Callable[..., Any]:
    """Give the function that `code` names.

    Args:
        code: a tagged map with kind "path", module, name, and for `__main__` the name of its file.

    Raises:
        CodeNotFound: if there is no such module, or nothing callable under that name in it.
    """
    kind, module, name = code.get("kind"), code.get("module"), code.get("name")
    if kind != "path" or not isinstance(module, str) or not isinstance(name, str):
        raise CodeNotFound(f"the launch names its code as {kind!r}: this worker knows 'path' with module and name")
    if module == "__main__":
        # Every script is __main__ to itself: the name alone does not say which is meant.
        _check_main(name, str(code.get("file") or ""))
    # Not remembered: a module may be loaded again meanwhile, as notebooks do.
    return _look_up(module, name)


def _look_up(module: str, name: str) -> Callable[..., Any]:
    place = f"step function {module}:{name}"
    try:
        found: Any = sys.modules.get(module)
        if found is None or getattr(getattr(found, "__spec__", None), "_initializing", False):
            # Also where another thread is importing it: then this waits for that.
            found = importlib.import_module(module)
    except Exception as error:
        raise CodeNotFound(f"{place}: importing the module failed: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise CodeNotFound(f"{place}: the module has no {name!r}") from None
    function = getattr(found, "fn", found)
    if not callable(function):
        raise CodeNotFound(f"{place} is a {type(function).__name__}, not a function")
    result: Callable[..., Any] = function
    return result


def _check_main(name: str, file: str) -> None:
    here = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    if file and here and Path(here).name != file:
        raise CodeNotFound(f"step function {name!r} is in the script {file}, and this worker runs in {Path(here).name}")
