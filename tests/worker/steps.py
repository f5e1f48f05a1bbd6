"""Steps for the tests here; imported by children, so with little to import."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from evpipe import pipeline, step

FOREVER_S = 600.0


def note_pid(file: str, pid: int | None = None) -> None:
    with Path(file).open("a") as out:
        out.write(f"{os.getpid() if pid is None else pid}\n")


def wait_for(file: str) -> None:
    end = time.monotonic() + 30
    while not Path(file).exists():
        assert time.monotonic() < end, f"nobody made {file}"
        time.sleep(0.005)


@step
def pid(after: Any = None) -> int:
    return os.getpid()


@step
def echo(value: Any) -> Any:
    return value


@step
def meet(folder: str, name: str, count: int) -> int:
    """Wait until so many are here at once."""
    (Path(folder) / name).touch()
    end = time.monotonic() + 30
    while len(list(Path(folder).iterdir())) < count:
        assert time.monotonic() < end, "the others do not come"
        time.sleep(0.005)
    return os.getpid()


@step
def hold(mark: str, gate: str) -> int:
    note_pid(mark)
    wait_for(gate)
    return os.getpid()


@step
def leave_tree(file: str, name: str, *, stays: bool) -> str:
    """Start processes in every way that gets away from a parent, write without an end of line, and stay or return."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note_pid(file)
    forked = os.fork()
    if forked == 0:
        time.sleep(FOREVER_S)
        os._exit(0)
    # Not by itself: it may be ended before it comes to that.
    note_pid(file, forked)
    sleeper = [sys.executable, "-S", "-c", f"import time; time.sleep({FOREVER_S})"]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    note_pid(file, subprocess.Popen(sleeper, start_new_session=True, **quiet).pid)  # type: ignore[call-overload]
    daemonize(file)
    libc = ctypes.CDLL(None)
    libc.printf(b"%s from printf\n", name.encode())
    libc.printf(b"%s from printf without an end", name.encode())
    libc.fflush(None)
    os.write(1, b", and from write")
    Path(file + ".ready").touch()
    if stays:
        time.sleep(FOREVER_S)
    return name


@step
def tree_until(folder: str, number: int) -> str:
    """The same tree; it stays until there is a gate, which is there at once for a second attempt."""
    name = f"tree{number}"
    leave_tree.fn(str(Path(folder) / name), name, stays=False)
    wait_for(str(Path(folder) / "gate"))
    return name


@step
def leave_one(file: str, way: str) -> int:
    if way == "daemon":
        Path(file).touch()
        daemonize(file)
        return os.getpid()
    pid = os.fork()
    if pid == 0:
        if way == "session":
            os.setsid()
        if way != "zombie":
            time.sleep(FOREVER_S)
        os._exit(0)
    note_pid(file, pid)
    if way == "zombie":
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return os.getpid()


def daemonize(file: str) -> None:
    """Fork twice with a session between, as daemons do; returns when the daemon has noted its number."""
    before = Path(file).read_text().count("\n")
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            note_pid(file)
            time.sleep(FOREVER_S)
        os._exit(0)
    while Path(file).read_text().count("\n") == before:
        time.sleep(0.005)


@pipeline
def one_after_another() -> list[int]:
    first = pid()
    return [first, pid(first)]


@pipeline
def side_by_side(folder: str, count: int) -> list[int]:
    return [meet(folder, f"m{i}", count) for i in range(count)]


@pipeline
def many(count: int) -> list[int]:
    return [pid(i) for i in range(count)]


@step(executor="thread")
def thread_pid(after: Any = None) -> int:
    return os.getpid()


@pipeline
def many_threads(count: int) -> list[int]:
    return [thread_pid(i) for i in range(count)]
