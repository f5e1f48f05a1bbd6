"""The program of a command step: how it is started, what is read while it runs, and how it is ended.

It has a session of its own, so that what it does to its process group (`kill 0`) it does to itself; whoever ends it
(the worker by the tree of its child, debug mode by `kill_tree`) finds it all the same.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple, TypeAlias

from evpipe.client.command_files import FILES, MODULES, PROGRAMS, PYTHON, inside_of, texts_of
from evpipe.core.names import for_people
from evpipe.sdk.command_line import CommandLine
from evpipe.wire.subjects import LaunchSubject
from evpipe.worker.children.killing import kill_tree
from evpipe.worker.children.output import READ_BYTES, Lines

#: Is told what the program wrote to "stdout" or "stderr", as it comes.
Tell: TypeAlias = Callable[[str, bytes], None]

#: Lines of standard output that can be a value: so many, of so many characters in all.
LINES_MAX: Final = 10_000
LINES_CHARS_MAX: Final = 1024 * 1024
#: Lines that are shown with a failure.
TAIL_LINES: Final = 120
#: What a program may write as its result.
RESULT_BYTES_MAX: Final = 16 * 1024 * 1024
#: What is read after it has ended, of what it had written before.
DRAIN_BYTES_MAX: Final = 64 * 1024 * 1024


class Place(NamedTuple):
    """Where a program runs."""

    #: Of the attempt, which need not exist.
    folder: str
    #: Folder of the files of the run's commands; "": they have none.
    commands: str
    #: What it gets beside what is set for it.
    environ: Mapping[str, str]
    #: Whether this process is a child of a worker, which ends it with all that it started.
    in_child: bool = False


class Written:
    """The lines of one stream, the last of them."""

    def __init__(self) -> None:
        self._lines = Lines()
        self.lines: deque[str] = deque()
        self._chars = 0
        #: Not all of them are kept.
        self.cut = False

    def feed(self, data: bytes) -> None:
        self._keep(self._lines.feed(data))

    def end(self) -> None:
        self._keep(self._lines.end())

    def _keep(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.lines.append(line)
            self._chars += len(line)
            while len(self.lines) > LINES_MAX or self._chars > LINES_CHARS_MAX:
                self._chars -= len(self.lines.popleft())
                self.cut = True


class Ended(NamedTuple):
    """How a program ended."""

    #: Below 0: the signal that killed it.
    code: int
    stdout: Written
    stderr: Written
    #: What it wrote as its result; b"": nothing; None: more than is allowed.
    result: bytes | None
    #: Where it ran.
    folder: Path


class TimedOut(Exception):
    """The program ran for longer than it may."""


class Folders:
    """The folders of one attempt's program.

    Args:
        name: of the command, by which its files are found.
    """

    def __init__(self, place: Place, name: str, cwd: str | None) -> None:
        self._own = Path(place.folder, "command")
        self._own.mkdir(mode=0o700, parents=True)
        self._files = Path(place.commands, name) if place.commands and name.isalnum() else None
        # Where nobody can say what a process has started, the worker finds it by its child's group alone.
        self.own_session = not place.in_child or Path("/proc/self").exists()
        #: Where the program runs.
        self.cwd = self._own / "work" if cwd is None else Path(cwd).absolute()
        self._beside = self._own / "files" if cwd is not None else self.cwd
        self._beside.mkdir(mode=0o700)
        self.result = self._own / "result.json"
        #: Paths of what was put there, as words have them.
        self._there: set[str] = set()
        self._copy()

    @property
    def modules(self) -> str:
        """Folder for the program's import path, or ""."""
        found = self._files / MODULES if self._files is not None else None
        return str(found) if found is not None and found.is_dir() else ""

    def placed(self, line: CommandLine, argv: list[str]) -> list[str]:
        """Give the words with the paths of files that are not where the program runs."""
        if self.cwd == self._beside or line.shell:
            return argv
        named = {text for word in line.words for text in texts_of(word) if inside_of(text) in self._there}
        return [self._in_place(word, named) for word in argv]

    def _in_place(self, word: str, named: set[str]) -> str:
        option, sign, value = word.partition("=")
        if word in named:
            return str(self._beside / inside_of(word))
        return f"{option}={self._beside / inside_of(value)}" if sign and value in named else word

    def _copy(self) -> None:
        """Put the files that the words name where the program is to find them; they are its own, to be changed."""
        for kind, mode in ((FILES, 0o600), (PROGRAMS, 0o700)):
            below = self._files / kind if self._files is not None else None
            for file in sorted(below.rglob("*")) if below is not None and below.is_dir() else ():
                if file.is_file():
                    inside = file.relative_to(below).as_posix()  # type: ignore[arg-type]  # None has no files
                    target = self._beside / inside
                    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    shutil.copyfile(file, target)
                    target.chmod(mode)
                    self._there.add(inside)


def environment(
    line: CommandLine, place: Place, folders: Folders, launch: LaunchSubject, variables: Mapping[str, str]
) -> dict[str, str]:
    """Give the environment of a program."""
    environ = dict(place.environ)
    # What is installed with the worker's interpreter is found by its name, also by a shell.
    scripts = os.path.dirname(sys.executable)  # noqa: PTH120 - a text for a text
    paths = environ.get("PATH", os.defpath).split(os.pathsep)
    if paths[0] != scripts:
        environ["PATH"] = os.pathsep.join([scripts, *paths])
    if folders.modules:
        before = environ.get("PYTHONPATH")
        environ["PYTHONPATH"] = os.pathsep.join([folders.modules, *([before] if before else [])])
    # A line is seen when it is written, not when a buffer is full.
    environ.setdefault("PYTHONUNBUFFERED", "1")
    environ |= variables
    step = for_people(launch.step)
    environ |= {"EVPIPE_RUN": launch.run, "EVPIPE_STEP": step, "EVPIPE_ATTEMPT": str(launch.attempt)}
    environ["EVPIPE_RESULT"] = str(folders.result)
    return environ


def own_interpreter(argv: list[str]) -> list[str]:
    """Give the words with the worker's interpreter for `python`."""
    return [sys.executable, *argv[1:]] if argv[0] in PYTHON else argv


def run_program(
    argv: list[str], environ: Mapping[str, str], folders: Folders, tell: Tell, timeout_s: float | None = None
) -> Ended:
    """Run a program to its end; what it has left running in its session ends with it.

    Args:
        timeout_s: seconds after which it is killed; None: whoever started this ends it.

    Raises:
        OSError: if it cannot be started.
        TimedOut: if it was killed.
    """
    held = _HeldInterrupts()
    try:
        program = _started(argv, environ, folders, tell)
    except BaseException:
        held.release()
        raise
    try:
        held.release()
        program.read(None if timeout_s is None else time.monotonic() + timeout_s)
    finally:
        program.end()
    return program.ended(folders)


class _HeldInterrupts:
    """Ctrl-C waits from when this is made until it is released: a program that is half started cannot be ended.

    It comes to the main thread alone, and only debug mode starts programs there where it means anything.
    """

    def __init__(self) -> None:
        self._came: list[tuple[int, FrameType | None]] = []
        before = signal.getsignal(signal.SIGINT)
        self._before = before if callable(before) and threading.current_thread() is threading.main_thread() else None
        if self._before is not None:
            signal.signal(signal.SIGINT, lambda number, frame: self._came.append((number, frame)))

    def release(self) -> None:
        """Let it come; raises what it raises, if it has come."""
        if self._before is None:
            return
        signal.signal(signal.SIGINT, self._before)
        for number, frame in self._came:
            self._before(number, frame)


def _started(argv: list[str], environ: Mapping[str, str], folders: Folders, tell: Tell) -> _Program:
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folders.cwd,
            env={**environ, "EVPIPE_RESULT_FD": str(writing)},
            pass_fds=(writing,),
            start_new_session=folders.own_session,
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return _Program(process, reading, tell)


class _Program:
    """A program that runs."""

    def __init__(self, process: subprocess.Popen[bytes], result: int, tell: Tell) -> None:
        self._process = process
        self._tell = tell
        self._stdout, self._stderr = Written(), Written()
        self._result = bytearray()
        self._has_ended = False
        assert process.stdout is not None
        assert process.stderr is not None
        self._pipes = {
            process.stdout.fileno(): self._wrote("stdout", self._stdout),
            process.stderr.fileno(): self._wrote("stderr", self._stderr),
            result: self._take_result,
        }
        self._result_pipe = result
        for descriptor in self._pipes:
            os.set_blocking(descriptor, False)
        self._ends, end = os.pipe()
        self._selector = selectors.DefaultSelector()
        for descriptor in (*self._pipes, self._ends):
            self._selector.register(descriptor, selectors.EVENT_READ)
        self._waiter = threading.Thread(target=self._wait, args=(end,), name="evpipe-wait", daemon=True)
        self._waiter.start()

    def read(self, until: float | None) -> None:
        """Read what it writes until it ends."""
        while not self._has_ended:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                raise TimedOut
            for key, _ in self._selector.select(left):
                if key.fd == self._ends:
                    self._has_ended = True
                elif not self._read_once(key.fd):
                    self._selector.unregister(key.fd)

    def end(self) -> None:
        """End it and what it left in its session, and read what they had written."""
        pid = self._process.pid
        if not self._has_ended:
            kill_tree(pid)
        else:
            # Not reaped yet: its number is still its own.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, 9)
        self._waiter.join()
        self._process.wait()
        for descriptor in self._pipes:
            left = DRAIN_BYTES_MAX
            while left > 0 and self._read_once(descriptor, blocked=False):
                left -= READ_BYTES
        self._stdout.end()
        self._stderr.end()
        self._selector.close()
        os.close(self._ends)
        os.close(self._result_pipe)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def ended(self, folders: Folders) -> Ended:
        result: bytes | None = bytes(self._result)
        if folders.result.is_file() and folders.result.stat().st_size:
            size = folders.result.stat().st_size
            result = folders.result.read_bytes() if size <= RESULT_BYTES_MAX else None
        elif len(self._result) > RESULT_BYTES_MAX:
            result = None
        return Ended(self._process.returncode, self._stdout, self._stderr, result, folders.cwd)

    def _wait(self, end: int) -> None:
        """Wait for its end without reaping it."""
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        os.close(end)

    def _read_once(self, descriptor: int, *, blocked: bool = True) -> bool:
        """Read some; gives whether more may come, or with `blocked=False` whether some was there."""
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return blocked
        if data:
            self._pipes[descriptor](data)
        return bool(data)

    def _wrote(self, stream: str, written: Written) -> Callable[[bytes], None]:
        def take(data: bytes) -> None:
            written.feed(data)
            self._tell(stream, data)

        return take

    def _take_result(self, data: bytes) -> None:
        if len(self._result) <= RESULT_BYTES_MAX:
            self._result += data
