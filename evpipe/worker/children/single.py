"""A child that runs one step at a time, in its main thread, and is put in order after each."""

from __future__ import annotations

import gc
import locale
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from evpipe.sdk.context import entered
from evpipe.wire.subjects import LaunchSubject
from evpipe.worker.attempt_files import AttemptFiles
from evpipe.worker.children.frames import Channel
from evpipe.worker.children.modules import Modules
from evpipe.worker.code import find_function
from evpipe.worker.conclusion import Conclusion, conclude_error, conclude_value
from evpipe.worker.recording import AttemptRecorder, FrameSink, Sink

#: Exit code of a process that a step forked and that came back from the step as if it were the step's own.
FORKED: Final = 70
#: Exit code of a child whose step closed the channel.
CHANNEL_CLOSED: Final = 71
_SIGNALS: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGALRM,
    signal.SIGCHLD,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGPIPE,
)
_LIMITS: Final = [name for name in dir(resource) if name.startswith("RLIMIT_")]


def serve_single(channel: Channel, modules: Modules, flush: Callable[[], None]) -> None:
    """Run what the worker sends until it closes the channel."""
    pid = os.getpid()

    def say(fields: Mapping[str, Any]) -> None:
        # A process that the step forked has the same socket, which is not for it.
        if os.getpid() == pid:
            with suppress(OSError):  # the end of the attempt cannot be told either, then
                channel.write(fields)

    while (frame := channel.read()) is not None:
        launch = LaunchSubject(*frame["launch"])
        if modules.stale(launch.run):
            channel.write({"frame": "stale", "id": frame["id"]})
            return
        conclusion, spoilt = _run(frame, launch, modules, flush, FrameSink(say, frame["id"]))
        if os.getpid() != pid:
            # The worker waits for the process that it started, and for one answer.
            os._exit(FORKED)
        modules.note()
        ended = {"frame": "ended", "id": frame["id"], "kind": conclusion.kind, "payload": conclusion.payload}
        ended["has_artifacts"] = conclusion.has_artifacts
        try:
            channel.write({**ended, "spoilt": spoilt})
        except OSError:
            os._exit(CHANNEL_CLOSED)
        if spoilt:
            # The worker ends it. Until then it stays the parent of what the step left running, which ends with it.
            channel.read()
            return


def _run(
    frame: dict[str, Any], launch: LaunchSubject, modules: Modules, flush: Callable[[], None], sink: Sink
) -> tuple[Conclusion, str]:
    """Run one attempt; gives also why the process is of no use any more, or nothing."""
    started_at_s = time.time()
    surroundings: Surroundings | None = None
    recorder: AttemptRecorder | None = None
    spoilt = ""
    try:
        files = AttemptFiles.of_frame(frame)
        order = modules.order(frame["order"], files)
        if order.executor == "command":
            # Not at the top: most children run none.
            from evpipe.worker.commands.conclusion import conclude_command
            from evpipe.worker.commands.program import Place

            surroundings = Surroundings()
            place = Place(frame["folder"], frame["commands"], modules.environ, in_child=True)
            conclusion = conclude_command(launch, order, place, files, _write)
        else:
            function = find_function(order.code)
            positional, named = order.call()
            # What the modules set when they were loaded stays.
            surroundings = Surroundings()
            recorder = AttemptRecorder(launch, order, sink, files, frame["folder"])
            with entered(recorder, of_process=True):
                value = function(*positional, **named)
            conclusion = conclude_value(launch, order, value, started_at_s, files)
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt of a step are its failure
        conclusion = conclude_error(launch, error, started_at_s)
        if isinstance(error, MemoryError):
            spoilt = "it ran out of memory"
    if recorder is not None:
        recorder.closed = True
    flush()
    if surroundings is not None and not spoilt:
        try:
            spoilt = surroundings.restore()
        except Exception as error:  # noqa: BLE001 - the step may have replaced anything
            spoilt = f"it cannot be put in order: {error}"
    return conclusion, spoilt


def _write(stream: str, data: bytes) -> None:
    """Hand on what a program wrote, to the pipe that the worker reads; waits if the worker is slow."""
    view = memoryview(data)
    while view:
        view = view[os.write(1 if stream == "stdout" else 2, view) :]


class Surroundings:
    """What a step may change of its process and must not hand on to the next step."""

    def __init__(self) -> None:
        self._folder = os.getcwd()  # noqa: PTH109
        self._environ = dict(os.environ)
        self._modules = dict(sys.modules)
        self._argv = list(sys.argv)
        self._umask = _umask()
        self._streams = (sys.stdin, sys.stdout, sys.stderr)
        self._pipes = tuple(_identity(i) for i in range(3))
        self._handlers = [(number, signal.getsignal(number)) for number in _SIGNALS]
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._limit = sys.getrecursionlimit()
        self._limits = _limits()
        self._locale = locale.setlocale(locale.LC_ALL)

    def restore(self) -> str:
        """Put back what can be; gives why the process is of no use any more, or nothing."""
        (sys.stdin, sys.stdout, sys.stderr) = self._streams
        if tuple(_identity(i) for i in range(3)) != self._pipes or any(s is None or s.closed for s in self._streams):
            return "it closed or replaced a standard stream"
        try:
            if _folder() != self._folder:
                os.chdir(self._folder)
        except OSError as error:
            return f"its folder is gone: {error}"
        if any(sys.modules.get(name) is not module for name, module in self._modules.items()):
            return "it replaced modules"
        if _has_processes():
            return "it left processes behind"
        if dict(os.environ) != self._environ:
            os.environ.clear()
            os.environ.update(self._environ)
        sys.argv[:] = self._argv
        os.umask(self._umask)
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        for number, handler in self._handlers:
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
        if sys.getrecursionlimit() != self._limit:
            sys.setrecursionlimit(self._limit)
        if locale.setlocale(locale.LC_ALL) != self._locale:
            return "it changed the locale"
        if _limits() != self._limits:
            return "it changed its resource limits"
        if sys.gettrace() is not None or sys.getprofile() is not None:
            sys.settrace(None)
            sys.setprofile(None)
        gc.enable()
        return ""


def _folder() -> str:
    try:
        return os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return ""


def _umask() -> int:
    found = os.umask(0o077)
    os.umask(found)
    return found


def _identity(descriptor: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return (found.st_dev, found.st_ino)


def _limits() -> list[tuple[int, int]]:
    return [resource.getrlimit(getattr(resource, name)) for name in _LIMITS]


def _has_processes() -> bool:
    """Say whether processes of the step still live; orphans of its processes are children of this one, too."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
