"""Steps that end their process, or try to."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

from evpipe import ProcessDied, Retry, pipeline, step
from tests.worker.steps import note_pid, pid

#: More than any process has: a child's are numbered as those of the worker that started it.
DESCRIPTORS: Final = 65_536


class Rude(Exception):
    def __str__(self) -> str:
        raise ValueError("no text of mine")


class Nest:
    """Its repr calls itself through C, where no limit of Python's counts the memory."""

    def __repr__(self) -> str:
        return repr([self])


def segfault() -> None:
    ctypes.string_at(0)


def kill_itself() -> None:
    print("a last word", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGKILL)


def system_exit() -> NoReturn:
    raise SystemExit(3)


def keyboard_interrupt() -> NoReturn:
    raise KeyboardInterrupt


def out_of_memory() -> int:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    return len(bytearray(1 << 40))


def close_everything() -> None:
    os.closerange(0, DESCRIPTORS)


def close_output() -> str:
    os.close(1)
    os.close(2)
    return "closed"


def rude() -> NoReturn:
    raise Rude


def unencodable() -> Any:
    return {"a": [object()]}


def forked() -> str:
    """Come back twice."""
    return f"from {os.fork() == 0}"


def forked_and_raised() -> str:
    if os.fork() == 0:
        raise ValueError("in the copy")
    return "from the original"


def recursion() -> None:
    recursion()


def recursion_in_c() -> None:
    sys.setrecursionlimit(10**8)
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]))
    repr(Nest())


def garbage() -> None:
    """Write on every socket that there is, one of which is the channel."""
    for descriptor in sorted(int(name) for name in os.listdir("/proc/self/fd")):  # noqa: PTH208
        try:
            if descriptor > 2 and Path(f"/proc/self/fd/{descriptor}").readlink().name.startswith("socket:"):
                os.write(descriptor, b"\xff" * 64)
        except OSError:
            continue
    signal.pause()


def close_and_stay() -> None:
    os.closerange(3, DESCRIPTORS)
    signal.pause()


WAYS: Final[dict[str, Callable[[], Any]]] = {
    "segfault": segfault,
    "abort": os.abort,
    "kill itself": kill_itself,
    "_exit(0)": lambda: os._exit(0),
    "_exit(17)": lambda: os._exit(17),
    "SystemExit": system_exit,
    "KeyboardInterrupt": keyboard_interrupt,
    "out of memory": out_of_memory,
    "close everything": close_everything,
    "close output": close_output,
    "rude": rude,
    "unencodable": unencodable,
    "forked": forked,
    "forked and raised": forked_and_raised,
    "recursion": recursion,
    "recursion in C": recursion_in_c,
    "garbage": garbage,
    "close and stay": close_and_stay,
}


@step(on_failure="continue")
def die(way: str, before: Any = None) -> Any:
    return WAYS[way]()


@step(retries=Retry(2, delay_s=0, on=(ProcessDied,)))
def die_twice(file: str) -> int:
    note_pid(file)
    if Path(file).read_text().count("\n") < 3:
        os._exit(9)
    return 3


@step(retries=Retry(2, delay_s=0, on=(ValueError,)))
def die_unexpectedly(file: str) -> None:
    note_pid(file)
    os._exit(9)


@pipeline
def dies(way: str) -> list[Any]:
    before = pid()
    died = die(way, before)
    return [before, died, pid(died)]


@pipeline
def retried(file: str) -> int:
    return die_twice(file)


@pipeline
def not_retried(file: str) -> None:
    return die_unexpectedly(file)
