"""Steps that change their process, and one that looks at what it finds. At import this module changes things, too."""

from __future__ import annotations

import gc
import json
import locale
import os
import resource
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from evpipe import pipeline, step

#: Set at import, and therefore to stay.
os.environ["SET_AT_IMPORT"] = "yes"
sys.path.append("/set/at/import")


def look() -> dict[str, Any]:
    """Everything that a step finds."""
    mask = os.umask(0)
    os.umask(mask)
    return {
        "cwd": str(Path.cwd()),
        "environ": dict(os.environ),
        "umask": mask,
        "handlers": [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1)],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "timer": signal.getitimer(signal.ITIMER_REAL)[0],
        "locale": locale.setlocale(locale.LC_ALL),
        "json": sys.modules["json"].__name__ + str(hasattr(sys.modules["json"], "fake")),
        "stdout": type(sys.stdout).__name__ + str(sys.stdout.closed),
        "recursion": sys.getrecursionlimit(),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "argv": sys.argv,
        "trace": str(sys.gettrace()),
        "gc": gc.isenabled(),
        "path": "/set/at/import" in sys.path,
    }


def folder() -> None:
    os.chdir("/")


def lost_folder() -> None:
    gone = Path("gone").absolute()
    gone.mkdir(exist_ok=True)
    os.chdir(gone)
    gone.rmdir()


def environ() -> None:
    os.environ["CHANGED"] = "yes"
    del os.environ["SET_AT_IMPORT"]


def umask() -> None:
    os.umask(0o777)


def handlers() -> None:
    for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})


def timer() -> None:
    signal.setitimer(signal.ITIMER_REAL, 600)


def change_locale() -> None:
    locale.setlocale(locale.LC_ALL, "C")


def module() -> None:
    fake = types.ModuleType("json")
    fake.fake = True  # type: ignore[attr-defined]  # what tells it
    sys.modules["json"] = fake


def no_module() -> None:
    del sys.modules["json"]


def stdout() -> None:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123


def no_stdout() -> None:
    sys.stdout = None  # as pythonw has it


def closed_stdout() -> None:
    sys.stdout.close()


def duplicated_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def stdout_of_anything() -> None:
    class Odd:
        def flush(self) -> None:
            raise LookupError("no flush")

    sys.stdout = Odd()  # what the test is about


def recursion() -> None:
    sys.setrecursionlimit(50_000)


def limits() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def arguments() -> None:
    sys.argv[:] = ["changed"]


def trace() -> None:
    sys.settrace(lambda *_: None)
    gc.disable()


CHANGES: Final[dict[str, Callable[[], None]]] = {
    change.__name__: change
    for change in (
        folder,
        lost_folder,
        environ,
        umask,
        handlers,
        timer,
        change_locale,
        module,
        no_module,
        stdout,
        no_stdout,
        closed_stdout,
        duplicated_stdout,
        stdout_of_anything,
        recursion,
        limits,
        arguments,
        trace,
    )
}


@step
def seen(after: Any = None) -> list[Any]:
    return [os.getpid(), json.loads(json.dumps(look()))]


@step
def change(what: str, after: Any = None) -> int:
    CHANGES[what]()
    return os.getpid()


@pipeline
def changed(what: str) -> list[Any]:
    before = seen()
    between = change(what, before)
    return [before, between, seen(between)]
