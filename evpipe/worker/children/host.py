"""A child that runs coroutine steps in one loop, and plain ones in threads of it, many at a time."""

from __future__ import annotations

import asyncio
import contextvars
import io
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TextIO

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio import CancelScope

from evpipe.errors import RemoteProtocolError
from evpipe.sdk.context import enter
from evpipe.wire.messages import LaunchOrder
from evpipe.wire.subjects import LaunchSubject
from evpipe.worker.attempt_files import AttemptFiles
from evpipe.worker.children.frames import Channel, Frames, encode_frame, receive, send
from evpipe.worker.children.modules import Modules
from evpipe.worker.children.output import Lines
from evpipe.worker.conclusion import conclude_error
from evpipe.worker.executors.here import call_here, conclude_here
from evpipe.worker.recording import AttemptRecorder, FrameSink

#: A frame takes them, however long they are: each has up to 32 KiB.
LINES_PER_FRAME: Final = 20
#: Frames that wait for the worker before lines are left out.
BACKLOG_MAX: Final = 1_000

#: The attempt that a line is of.
_attempt: contextvars.ContextVar[int | None] = contextvars.ContextVar("attempt", default=None)


def serve_host(channel: Channel, modules: Modules) -> None:
    """Run what the worker sends until it closes the channel."""
    anyio.run(Host(channel, modules).serve)


class Host:
    """The attempts of this process."""

    def __init__(self, channel: Channel, modules: Modules) -> None:
        self._sock = channel.sock
        self._modules = modules
        self._scopes: dict[int, CancelScope] = {}
        self._unsent: deque[bytes] = deque()
        self._wake = anyio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.get_ident()

    async def serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock.setblocking(False)
        sys.stdout = Stream(self, "stdout", sys.stdout)
        sys.stderr = Stream(self, "stderr", sys.stderr)
        frames = Frames()
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(self._send)
            while True:
                data = await receive(self._sock)
                if not data:
                    break
                for frame in frames.feed(data):
                    if frame["frame"] == "run":
                        # Before it begins: it may be stopped by the next frame.
                        scope = self._scopes[frame["id"]] = CancelScope()
                        task_group.start_soon(self._run, frame, scope)
                    elif frame["frame"] == "stop" and frame["id"] in self._scopes:
                        self._scopes[frame["id"]].cancel()
            # The worker has gone, or wants no more of this.
            task_group.cancel_scope.cancel()

    @property
    def backlog(self) -> int:
        """Frames that the worker has not taken yet."""
        return len(self._unsent)

    def write(self, fields: Mapping[str, Any]) -> None:
        """Send a frame, in order, without waiting; from any thread."""
        if threading.get_ident() != self._thread:
            assert self._loop is not None, "threads come with attempts"
            self._loop.call_soon_threadsafe(self.write, fields)
            return
        self._unsent.append(encode_frame(fields))
        self._wake.set()

    def soon(self, call: Callable[[], None]) -> None:
        """Call it in the loop, a moment later; from any thread."""
        assert self._loop is not None, "attempts come with it"
        if threading.get_ident() == self._thread:
            self._loop.call_soon(call)
        else:
            with suppress(RuntimeError):  # the loop has gone, and so will this process
                self._loop.call_soon_threadsafe(call)

    async def _send(self) -> None:
        while True:
            while self._unsent:
                await send(self._sock, self._unsent.popleft())
            self._wake = anyio.Event()
            await self._wake.wait()

    async def _run(self, frame: dict[str, Any], scope: CancelScope) -> None:
        number = frame["id"]
        launch = LaunchSubject(*frame["launch"])
        if self._modules.stale(launch.run):
            self._scopes.pop(number, None)
            self.write({"frame": "stale", "id": number})
            return
        _attempt.set(number)
        started_at_s = time.time()
        sink: HostSink | None = None
        recorder: AttemptRecorder | None = None
        with scope:
            try:
                await anyio.lowlevel.checkpoint_if_cancelled()
                files = AttemptFiles.of_frame(frame)
                order = await self._order(frame, files)
                sink = HostSink(self, number)
                recorder = AttemptRecorder(launch, order, sink, files, frame["folder"])
                enter(recorder)
                conclusion = await conclude_here(launch, order, await call_here(order), started_at_s, files)
            except anyio.get_cancelled_exc_class():
                if recorder is not None:
                    recorder.cancelled = True
                raise
            except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt of a step are its failure
                conclusion = conclude_error(launch, error, started_at_s)
        self._scopes.pop(number, None)
        if recorder is not None:
            recorder.closed = True
        if sink is not None:
            sink.flush()
        self._modules.note()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, Stream):
                stream.end()
        if scope.cancelled_caught:
            self.write({"frame": "stopped", "id": number})
        else:
            fields = {"frame": "ended", "id": number, "kind": conclusion.kind, "payload": conclusion.payload}
            self.write({**fields, "has_artifacts": conclusion.has_artifacts, "spoilt": ""})

    async def _order(self, frame: dict[str, Any], files: AttemptFiles) -> LaunchOrder:
        try:
            if frame["has_artifacts"]:
                # They may take long to read, and others run in this loop.
                return await anyio.to_thread.run_sync(self._modules.order, frame["order"], files)
            return self._modules.order(frame["order"], files)
        except RemoteProtocolError as error:
            raise AssertionError("the worker has read it before") from error


class HostSink(FrameSink):
    """Sends what an attempt says when the loop has a turn, so that many points are one frame."""

    def __init__(self, host: Host, number: int) -> None:
        super().__init__(host.write, number)
        self._host = host
        self._lock = threading.Lock()
        self._rows = bytearray()
        self._count = 0
        self._left_out = 0
        self._asked = False
        self._lines_left_out = 0

    def points(self, rows: bytes, count: int, left_out: int = 0) -> None:
        with self._lock:
            self._rows += rows
            self._count += count
            self._left_out += left_out
            if self._asked:
                return
            self._asked = True
        self._host.soon(self.flush)

    def flush(self) -> None:
        with self._lock:
            rows, count, left_out = bytes(self._rows), self._count, self._left_out
            self._rows.clear()
            self._count = self._left_out = 0
            self._asked = False
        if count or left_out:
            super().points(rows, count, left_out)

    def line(self, level: str, text: str, fields: Mapping[str, Any], at_s: float) -> None:
        if self._host.backlog > BACKLOG_MAX:
            self._lines_left_out += 1
            return
        if self._lines_left_out:
            left_out, self._lines_left_out = self._lines_left_out, 0
            self._host.write({"frame": "output", "id": self._number, "stream": "stderr", "left_out": left_out})
        super().line(level, text, fields, at_s)


class Stream(io.TextIOBase):
    """A standard stream of which each line goes to the attempt that wrote it."""

    def __init__(self, host: Host, name: str, below: TextIO) -> None:
        self._host = host
        self._name = name
        self._below = below
        self._lines: dict[int, Lines] = {}
        self._left_out: dict[int, int] = {}

    def write(self, text: str) -> int:
        number = _attempt.get()
        if number is None:
            return self._below.write(text)
        lines = self._lines.setdefault(number, Lines())
        self._tell(number, lines.feed(text.encode(errors="backslashreplace")))
        return len(text)

    def end(self) -> None:
        """Send what was written without an end of line."""
        number = _attempt.get()
        lines = self._lines.pop(number, None) if number is not None else None
        if number is None or lines is None:
            return
        self._tell(number, lines.end())
        left_out = self._left_out.pop(number, 0)
        if left_out:
            self._host.write({"frame": "output", "id": number, "stream": self._name, "left_out": left_out})

    def _tell(self, number: int, lines: list[str]) -> None:
        for i in range(0, len(lines), LINES_PER_FRAME):
            some = lines[i : i + LINES_PER_FRAME]
            if self._host.backlog > BACKLOG_MAX:
                # A step is not held up by what it writes, nor may that fill the memory.
                self._left_out[number] = self._left_out.get(number, 0) + len(some)
                continue
            left_out = self._left_out.pop(number, 0)
            fields = {"frame": "output", "id": number, "stream": self._name, "text": "\n".join(some)}
            self._host.write({**fields, "left_out": left_out})

    def flush(self) -> None:
        self._below.flush()

    def fileno(self) -> int:
        return self._below.fileno()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a property there, too, without a type
        return self._below.encoding

    @property
    def buffer(self) -> Any:
        return getattr(self._below, "buffer", None)
