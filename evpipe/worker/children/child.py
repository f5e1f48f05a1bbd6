"""A child as its worker sees it: a process, the channel to it, what it writes, and how it ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup

from evpipe.client.source import Source
from evpipe.core.events import Failure
from evpipe.errors import ProcessDied, RemoteProtocolError
from evpipe.wire.subjects import LaunchSubject
from evpipe.worker.children.frames import CHUNK_BYTES, SAID, Frames, encode_frame, receive, send
from evpipe.worker.children.guard_process import Guard
from evpipe.worker.children.killing import kill_tree
from evpipe.worker.children.output import Output
from evpipe.worker.children.single import CHANNEL_CLOSED
from evpipe.worker.conclusion import KINDS, Conclusion
from evpipe.worker.failures import types_of
from evpipe.worker.notes import AttemptNotes

log = structlog.get_logger(__name__)

Role: TypeAlias = Literal["single", "host"]

#: From its start to its first word: the interpreter and this package, on a machine that is busy.
START_S: Final = 60.0
#: A host that has not answered for so long runs no coroutine any more.
STUCK_S: Final = 5.0
#: An attempt of a host that was told to end may still say something for so long.
STOP_S: Final = 2.0
#: A process that has closed its channel is given this long to end by itself.
LEAVE_S: Final = 2.0
#: Lines of standard error that are shown with a process that died: Python tells up to 100 frames, and what happened.
TAIL_LINES: Final = 120

#: Where this package was found.
_FOLDER: Final = str(Path(__file__).parents[3])
_BOOT: Final = """\
import sys
sys.path.append({package!r})
from evpipe.worker.children.main import main
main({descriptor})
"""


class Given(NamedTuple):
    """What a child is given of an attempt."""

    #: The launch, as it came.
    payload: bytes
    #: The attempt's folder, which need not exist.
    folder: str
    has_artifacts: bool
    allow_pickle: bool
    #: Folder of the files of the run's commands; "": they have none.
    commands: str = ""

    def as_fields(self) -> dict[str, Any]:
        return {
            "order": self.payload,
            "folder": self.folder,
            "has_artifacts": self.has_artifacts,
            "allow_pickle": self.allow_pickle,
            "commands": self.commands,
        }


class ChildGone(Exception):
    """The child ended before the attempt did."""

    def __init__(self, failure: Failure, *, shared: bool) -> None:
        super().__init__(failure.message)
        self.failure = failure
        #: Nobody can say that it was this attempt's doing: the child did not start, or ran others, too.
        self.shared = shared


class Stale(Exception):
    """The child has loaded code that has changed since; it did not run the attempt."""


class _Held:
    """An attempt that the child has."""

    def __init__(self, notes: AttemptNotes) -> None:
        self.notes = notes
        #: The lines that it writes.
        self.output = notes.log
        self.done = anyio.Event()
        self.conclusion: Conclusion | None = None
        self.error: Exception | None = None

    def end(self, error: Exception | None = None) -> None:
        self.error = error
        self.done.set()


class Child:
    """One child; `serve` is its life and runs as a task of its pool.

    Args:
        role: "single" runs one attempt at a time, "host" many in one loop.
        source: the code that it may run.
    """

    def __init__(self, role: Role, source: Source, guard: Guard) -> None:
        self.role: Role = role
        self.source = source
        self._guard = guard
        self._frames = Frames()
        self._sock: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._outputs: list[Output] = []
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        #: Attempts that a host was told to end, and when.
        self._stopping: dict[int, float] = {}
        #: Folders of those.
        self._left: dict[int, str] = {}
        self._held: dict[int, _Held] = {}
        self._number = 0
        self._unsent: deque[bytes] = deque()
        self._unsent_more = anyio.Event()
        self._was_ready = False
        #: Why this worker ended it; "" if that was not for anything it did.
        self._why = ""
        #: Why it must run nothing more; "" while it may.
        self.spoilt = ""
        #: It has said that it is ready, or is gone.
        self.settled = anyio.Event()
        self.ended = anyio.Event()
        #: It has said that it is ready, or is to end.
        self._began = anyio.Event()
        self._end_asked = anyio.Event()
        #: When it last had something to do, by the loop's clock.
        self.used_at = anyio.current_time()

    @property
    def usable(self) -> bool:
        return self._was_ready and not self.spoilt and not self.leaving

    @property
    def leaving(self) -> bool:
        return self.ended.is_set() or self._end_asked.is_set()

    @property
    def stuck(self) -> bool:
        """Whether it has not ended an attempt that it was told to end: a step blocks its loop."""
        return any(anyio.current_time() - asked_at > STUCK_S for asked_at in self._stopping.values())

    @property
    def busy(self) -> int:
        return len(self._held)

    # ---- attempts

    async def run(self, launch: LaunchSubject, given: Given, notes: AttemptNotes) -> Conclusion:
        """Run an attempt in it.

        Args:
            given: the launch, and where its artifacts are.
            notes: are told what the attempt writes and says.

        Raises:
            ChildGone: if it ended first.
            Stale: if it has old code; it must run nothing more.
        """
        if not self.usable:
            raise ChildGone(self._death(), shared=True)
        self._number += 1
        number = self._number
        held = self._held[number] = _Held(notes)
        if self.role == "single":
            # What earlier attempts wrote is none of this one's.
            self._tail.clear()
        try:
            self._write({"frame": "run", "id": number, "launch": list(launch), **given.as_fields()})
            await held.done.wait()
        except BaseException:
            if self.role == "host":
                await self._stop(number, held, given.folder)
            else:
                # While the attempt is still its own: what it wrote until then is read when it is gone.
                await self.kill()
            raise
        finally:
            self._held.pop(number, None)
            self.used_at = anyio.current_time()
        if held.error is not None:
            raise held.error
        assert held.conclusion is not None, "an attempt ends with one or the other"
        return held.conclusion

    async def _stop(self, number: int, held: _Held, folder: str) -> None:
        """Let a host end an attempt; what it said until then has been read afterwards."""
        self._stopping[number] = anyio.current_time()
        self._write({"frame": "stop", "id": number})
        await _wait_all_the_same(held.done, STOP_S)
        if number in self._stopping:
            # It goes on: the folder is removed again when it has ended.
            self._left[number] = folder

    async def kill(self) -> None:
        """End it now, with all that it started, and wait until it is gone."""
        if self._process is not None and not self.ended.is_set():
            kill_tree(self._process.pid)
        self.leave()
        await _wait_all_the_same(self.ended, LEAVE_S)

    def leave(self, why: str = "") -> None:
        """Ask it to end.

        Args:
            why: what it did that it must end for.
        """
        if not self._end_asked.is_set():
            self._why = why
        self._end_asked.set()
        self._began.set()

    # ---- its life

    async def serve(self) -> None:
        """Start it, hear it, and clear away after it."""
        try:
            await self._live()
        finally:
            # Whatever happens: somebody may wait for it.
            self._gone()

    async def _live(self) -> None:
        try:
            await self._guard.start()
            await self._start()
        except OSError as error:
            self.leave(str(error))
            return
        assert self._process is not None
        self._guard.add(self._process.pid)
        try:
            async with anyio.create_task_group() as task_group:
                self._listen(task_group)
                with anyio.move_on_after(START_S) as start:
                    await self._began.wait()
                if start.cancelled_caught:
                    self.leave(f"it said nothing for {START_S:g} s")
                await self._end_asked.wait()
                task_group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._clear()

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            boot = _BOOT.format(package=_FOLDER, descriptor=theirs.fileno())
            # In a thread: the loop must not wait for a fork and an exec.
            process = await anyio.to_thread.run_sync(_spawn, [sys.executable, *_flags(), "-c", boot], theirs.fileno())
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._process, self._sock = process, ours
        assert process.stdout is not None
        assert process.stderr is not None
        for name, pipe in (("stdout", process.stdout), ("stderr", process.stderr)):
            self._outputs.append(Output(os.dup(pipe.fileno()), self._teller(name)))
            pipe.close()
        self._write({"frame": "begin", "role": self.role, "source": self.source.as_map()})

    def _listen(self, task_group: TaskGroup) -> None:
        for output in self._outputs:
            task_group.start_soon(output.read)
        task_group.start_soon(self._hear)
        task_group.start_soon(self._send)
        task_group.start_soon(self._watch)

    async def _hear(self) -> None:
        """Take what it says until it closes its end."""
        assert self._sock is not None
        try:
            while data := await receive(self._sock):
                for frame in self._frames.feed(data):
                    self._take(frame)
        except (RemoteProtocolError, LookupError, TypeError, ValueError, OverflowError) as error:
            # The last four: a field that is not what it should be.
            self.leave(f"what it wrote where its result travels is none: {error}")
            return
        # Its end is told by `_watch`, if it ends: a step may have closed what is not its own.
        await anyio.sleep(LEAVE_S)
        self.leave("it closed the descriptor on which its result travels")

    async def _send(self) -> None:
        assert self._sock is not None
        while True:
            while self._unsent:
                with suppress(OSError):
                    await send(self._sock, self._unsent.popleft())
            self._unsent_more = anyio.Event()
            await self._unsent_more.wait()

    async def _watch(self) -> None:
        """Wait for the end of its process; the pipes may stay open longer, if it forked."""
        assert self._process is not None
        if sys.platform == "linux":
            descriptor = os.pidfd_open(self._process.pid)
            try:
                await anyio.wait_readable(descriptor)
            finally:
                os.close(descriptor)
        else:
            # Without reaping it: its number must stay its own until its group has been ended.
            wait = (os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            await anyio.to_thread.run_sync(os.waitid, *wait, abandon_on_cancel=True)
        self.leave()

    async def _clear(self) -> None:
        assert self._process is not None
        assert self._sock is not None
        process = self._process
        if self._was_ready and not self._held and not self.spoilt and not self._why:
            # An idle one may run what it has registered for its end.
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            with anyio.move_on_after(LEAVE_S):
                await self._watch()
        kill_tree(process.pid)
        await anyio.to_thread.run_sync(process.wait)
        self._guard.remove(process.pid)
        for output in self._outputs:
            output.drain()
            output.close()
        self._take_what_was_said(self._sock)
        self._sock.close()

    def _take_what_was_said(self, sock: socket.socket) -> None:
        """Take what an attempt said and nobody has read yet: it may have been killed just after it."""
        with suppress(OSError, RemoteProtocolError, LookupError, TypeError, ValueError, OverflowError):
            while data := sock.recv(CHUNK_BYTES):
                for frame in self._frames.feed(data):
                    if frame["frame"] in SAID:
                        self._take(frame)

    def _gone(self) -> None:
        self.ended.set()
        self.settled.set()
        failure = self._death()
        shared = len(self._held) > 1 or bool(self._stopping)
        for held in list(self._held.values()):
            if not held.done.is_set():
                held.end(ChildGone(failure, shared=shared))

    def _death(self) -> Failure:
        tail = "\n".join(self._tail)
        if not self._was_ready:
            why = self._why or (self._tail[-1] if self._tail else self._how())
            message = f"a process for the step did not start: {why}"
            return Failure(message=message, types=types_of(ProcessDied), traceback=tail)
        return Failure(message=f"its process {self._how()}", types=types_of(ProcessDied), traceback=tail)

    def _how(self) -> str:
        if self._why:
            return f"was ended: {self._why}"
        code = None if self._process is None else self._process.returncode
        if code is None:
            return "has ended"
        if code == CHANNEL_CLOSED:
            return "closed the descriptor on which its result travels"
        if code >= 0:
            return f"exited with code {code} without a result"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
        hint = ", which evpipe did not send: the machine may have run out of memory" if -code == signal.SIGKILL else ""
        return f"was killed by signal {-code} ({name}){hint}"

    # ---- frames

    def _write(self, fields: Mapping[str, Any]) -> None:
        """Send a frame, in order, without waiting."""
        assert self._sock is not None
        data = encode_frame(fields)
        if not self._unsent:
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                pass
            except OSError:
                return  # it is gone, which `_watch` tells
        if data:
            self._unsent.append(data)
            self._unsent_more.set()

    def _take(self, frame: dict[str, Any]) -> None:
        if frame["frame"] == "ready":
            self._was_ready = True
            self._began.set()
            self.settled.set()
            return
        number = frame.get("id")
        held = self._held.get(number) if isinstance(number, int) else None
        if isinstance(number, int) and frame["frame"] not in SAID and (held is None or number in self._stopping):
            # It was told to end, and has. Until then a thread of it may have gone on writing.
            self._stopping.pop(number, None)
            folder = self._left.pop(number, None)
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            if held is not None:
                held.end()
            return
        if held is None:
            return
        match frame["frame"]:
            case "ended":
                if self.role == "single":
                    # All that the attempt wrote is in the pipes by now.
                    for output in self._outputs:
                        output.drain()
                self.spoilt = str(frame.get("spoilt", ""))
                if self.spoilt:
                    log.debug("child_spoilt", why=self.spoilt)
                kind, payload = frame.get("kind"), frame.get("payload")
                if kind not in KINDS or not isinstance(payload, bytes):
                    raise RemoteProtocolError("an end that is no event")
                held.conclusion = Conclusion(kind, payload, frame.get("has_artifacts") is True)
                held.end()
            case "output":
                held.output.miss(int(frame.get("left_out", 0)))
                if "text" in frame:
                    held.output.tell(_stream(frame.get("stream")), str(frame["text"]).split("\n"))
            case "points":
                left_out = int(frame.get("left_out", 0))
                held.notes.points(_bytes(frame.get("rows")), int(frame["count"]), left_out)
            case "progress":
                held.notes.progress(float(frame["fraction"]), str(frame["message"]), float(frame["at"]))
            case "artifact":
                held.notes.artifact(str(frame["name"]), _bytes(frame.get("value")))
            case "line":
                level, text, at_s = str(frame["level"]), str(frame["text"]), float(frame["at"])
                held.notes.line(level, text, dict(frame["fields"]), at_s)
            case "stale":
                self.spoilt = "it has old code"
                held.end(Stale())
            case other:
                raise RemoteProtocolError(f"there is no frame {other[:40]!r}")

    def _teller(self, stream: str) -> Any:
        def tell(lines: list[str]) -> None:
            if stream == "stderr":
                self._tail.extend(lines)
            if self.role == "single" and self._held:
                next(iter(self._held.values())).output.tell(stream, lines)
                return
            for line in lines:
                # Of no attempt: written while it starts, or in a host below Python's own streams.
                log.info("child_output", stream=stream, line=line)

        return tell


async def _wait_all_the_same(event: anyio.Event, seconds: float) -> None:
    """Wait for what follows a cancellation, which will be raised afterwards; another one meanwhile changes nothing."""
    until = anyio.current_time() + seconds
    while not event.is_set() and anyio.current_time() < until:
        with suppress(anyio.get_cancelled_exc_class()), anyio.move_on_at(until, shield=True):
            await event.wait()


def _bytes(found: object) -> bytes:
    if not isinstance(found, bytes):
        raise RemoteProtocolError("a frame without its bytes")
    return found


def _stream(name: object) -> str:
    if name not in {"stdout", "stderr"}:
        raise RemoteProtocolError(f"there is no stream {str(name)[:40]!r}")
    return str(name)


def _spawn(command: list[str], descriptor: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(descriptor,),
        # A group of its own, to be killed with all that is in it; and away from the terminal's Ctrl-C.
        start_new_session=True,
    )


def _flags() -> list[str]:
    """Flags of this interpreter that change what code means; never the current folder before the source's."""
    flags = ["-P"]
    flags += ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
    flags += ["-E"] if sys.flags.ignore_environment else []
    flags += ["-s"] if sys.flags.no_user_site else []
    return flags
