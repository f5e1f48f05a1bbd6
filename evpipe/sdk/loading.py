"""Whether this process is loading a step's code: what runs a pipeline then would do so in the process of every step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from evpipe.errors import UsageError

#: What is being loaded for a step, if anything.
_loading: Final[ContextVar[str]] = ContextVar("loading", default="")


class LoadingEnds(BaseException):
    """Ends the loading of a script: what is above that line is what its steps are made of."""


@contextmanager
def loading(module: str) -> Iterator[None]:
    """Say so for a while; of what runs in this context.

    Args:
        module: its name, `__main__` for the script.
    """
    token = _loading.set(module)
    try:
        yield
    finally:
        _loading.reset(token)


def check_not_loading() -> None:
    """Refuse to run a pipeline while a step's code is being loaded.

    Raises:
        UsageError: if it is.
    """
    module = _loading.get()
    if module:
        what = "the script" if module == "__main__" else f"the module {module}"
        raise UsageError(
            f"{what} runs a pipeline when it is loaded, which "
            'each process of a step does: put that under `if __name__ == "__main__":`'
        )


def end_loading_or_check() -> None:
    """Where a script runs a pipeline: end its loading here, if that is what is done with it.

    Raises:
        LoadingEnds: if a script is being loaded.
        UsageError: if a module is.
    """
    if _loading.get() == "__main__":
        raise LoadingEnds
    check_not_loading()
