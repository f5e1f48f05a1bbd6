"""What attempts write and say, on its way to the telemetry stream: gathered for a moment, bounded, never waited for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, Protocol

import anyio
import anyio.from_thread
import msgpack
from anyio.lowlevel import EventLoopToken, current_token

from evpipe.bus.clock import loop_runs_here
from evpipe.bus.protocol import Bus
from evpipe.wire.limits import LINE_CHARS_MAX, LOG_BATCH_BYTES
from evpipe.wire.subjects import LaunchSubject
from evpipe.wire.telemetry import LogBatch, LogLine, encode_log

#: Lines are gathered for this long, so that a chatty step costs few messages.
GATHER_S: Final = 0.1
#: What one attempt may write in that time; more is left out, and counted.
BATCHES_PER_GATHERING: Final = 4
#: What is kept of one attempt, so that it does not push out what others wrote.
ATTEMPT_BYTES_MAX: Final = 8 * 1024 * 1024
#: Of what is left out the last lines are sent after all: when there is room again, and at the end.
LAST_LINES: Final = 200
LAST_BYTES_MAX: Final = 4 * LOG_BATCH_BYTES
#: Of a line beside its text: its time, its stream, and that it was cut.
LINE_BYTES: Final = 24


class Gathered(Protocol):
    """What has something to send."""

    def flush(self) -> None: ...


class LogBook:
    """The output of all attempts of one worker.

    Its `run` sends what has gathered; it is a task of the worker.

    Args:
        worker: its id.
    """

    def __init__(self, bus: Bus, worker: str = "") -> None:
        self._bus = bus
        self.worker = worker
        self._waiting: set[Gathered] = set()
        self._wake = anyio.Event()
        #: Held while something is taken from an attempt, or what it said is looked at.
        self.lock = threading.Lock()
        self._thread = 0
        self._token: EventLoopToken | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def log_of(self, launch: LaunchSubject) -> AttemptLog:
        return AttemptLog(self, self.subject(launch, "log"))

    def subject(self, launch: LaunchSubject, kind: str) -> str:
        return self._bus.subjects.telemetry(launch.run, launch.step, launch.attempt, kind)

    def open(self) -> None:
        """Take note of the loop that this is called in: the worker's."""
        self._thread, self._token = threading.get_ident(), current_token()
        self._loop = asyncio.get_running_loop() if loop_runs_here() else None

    @property
    def here(self) -> bool:
        """Whether the caller is in the worker's thread; others may only call `gather_soon`."""
        return threading.get_ident() == self._thread

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            await anyio.sleep(GATHER_S)
            waiting, self._waiting = self._waiting, set()
            for log in waiting:
                log.flush()

    def gather(self, log: Gathered) -> None:
        self._waiting.add(log)
        self._wake.set()

    def gather_soon(self, log: Gathered) -> None:
        """As `gather`, from any thread."""
        with suppress(RuntimeError):  # the loop has gone: nobody sends anything any more
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self.gather, log)
            else:
                anyio.from_thread.run_sync(self.gather, log, token=self._token)

    def send(self, subject: str, batch: LogBatch) -> None:
        self.tell(subject, encode_log(batch))

    def tell(self, subject: str, payload: bytes) -> None:
        self._bus.telemetry.tell(subject, payload)


class AttemptLog:
    """The output of one attempt: every line is sent, in order, or counted in the next batch as left out."""

    def __init__(self, book: LogBook, subject: str) -> None:
        self._book = book
        self._subject = subject
        self._lines: list[LogLine] = []
        self._size = 0
        self._batches = 0
        #: Lines that were written after the last that was sent or is in `_lines`, and are not kept.
        self._left_out = 0
        self._total = 0
        #: The newest of those that are left out; counted there, too.
        self._last: deque[tuple[LogLine, int]] = deque()
        self._last_size = 0

    def tell(self, stream: str, texts: Iterable[str]) -> None:
        """Take lines that the attempt wrote now to "stdout" or "stderr"."""
        now_s = time.time()
        self.take(LogLine(now_s, stream, text[: LINE_CHARS_MAX + 1]) for text in texts)

    def take(self, lines: Iterable[LogLine]) -> None:
        for line in lines:
            size = _size(line)
            if self._batches >= BATCHES_PER_GATHERING or self._total > ATTEMPT_BYTES_MAX:
                self._leave_out(line, size)
            else:
                self._take(line, size)
        self._book.gather(self)

    def miss(self, count: int) -> None:
        """Take note of lines that were dropped on their way here."""
        if count:
            if self._lines:
                self._send()
            self._forget_last()
            self._left_out += count

    def flush(self) -> None:
        """Send what has gathered."""
        if self._total <= ATTEMPT_BYTES_MAX:
            self._take_last()
        if self._lines:
            self._send()
        self._batches = 0

    def end(self) -> None:
        """Send the rest: the attempt has ended."""
        self._take_last()
        if self._lines or self._left_out:
            self._send()

    def _take(self, line: LogLine, size: int) -> None:
        if self._lines and self._size + size > LOG_BATCH_BYTES:
            self._send()
        self._lines.append(line)
        self._size += size
        self._total += size
        if self._size >= LOG_BATCH_BYTES // 2:
            self._send()

    def _leave_out(self, line: LogLine, size: int) -> None:
        if self._lines:
            # A batch tells what is missing before its lines, and this is missing after them.
            self._send()
        self._left_out += 1
        self._last.append((line, size))
        self._last_size += size
        while len(self._last) > LAST_LINES or self._last_size > LAST_BYTES_MAX:
            self._last_size -= self._last.popleft()[1]

    def _take_last(self) -> None:
        """Send the newest of what was left out after all: they are what somebody looks for."""
        last = list(self._last)
        self._left_out -= len(last)
        self._forget_last()
        for line, size in last:
            self._take(line, size)

    def _forget_last(self) -> None:
        self._last.clear()
        self._last_size = 0

    def _send(self) -> None:
        self._book.send(self._subject, LogBatch(lines=tuple(self._lines), left_out=self._left_out))
        self._lines, self._size, self._left_out = [], 0, 0
        self._batches += 1


def _size(line: LogLine) -> int:
    """Give no less than what a line takes on the wire."""
    text = line.text
    size = LINE_BYTES + (len(text) if text.isascii() else len(text.encode(errors="backslashreplace")))
    # With its level.
    return size + 16 + len(msgpack.packb(dict(line.fields))) if line.level else size
