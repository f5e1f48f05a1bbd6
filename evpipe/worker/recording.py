"""What an attempt says, in the process in which its step runs: checked already, and handed to whoever keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from evpipe.core.names import for_people
from evpipe.wire.limits import LINE_CHARS_MAX, METRIC_POINTS_MAX
from evpipe.wire.messages import LaunchOrder
from evpipe.wire.notes import check_room, encode_artifact, packed_row
from evpipe.wire.subjects import LaunchSubject
from evpipe.worker.attempt_files import AttemptFiles

#: The attempt's own folder, below the one that the worker has for it.
WORK = "work"


class Sink(Protocol):
    """Takes what an attempt says; from any thread."""

    def progress(self, fraction: float, message: str, at_s: float) -> None: ...

    def points(self, rows: bytes, count: int, left_out: int = 0) -> None: ...

    def artifact(self, name: str, packed: bytes) -> None: ...

    def line(self, level: str, text: str, fields: Mapping[str, Any], at_s: float) -> None: ...


class AttemptRecorder:
    """See `sdk.context.Recorder`.

    Args:
        sink: keeps what is said.
        files: take artifacts.
        folder: gives the folder that the attempt has on this machine, which need not exist.
    """

    cancelled = False
    #: The attempt has ended; a thread of it may go on.
    closed = False
    _work: Path | None = None
    _count = 0
    #: Of artifacts, as they travel, by name, and all together; None: there are none.
    _artifact_sizes: dict[str, int] | None = None
    _artifact_bytes = 0

    def __init__(self, launch: LaunchSubject, order: LaunchOrder, sink: Sink, files: AttemptFiles, folder: str) -> None:
        self._launch = launch
        self._order = order
        self._sink = sink
        self._files = files
        self._folder = folder

    @property
    def run(self) -> str:
        return self._launch.run

    @property
    def step(self) -> str:
        return for_people(self._launch.step)

    @property
    def attempt(self) -> int:
        return self._launch.attempt

    def progress(self, fraction: float, message: str, at_s: float) -> None:
        if not self.closed:
            self._sink.progress(fraction, message, at_s)

    def metric(self, name: str, value: float, iteration: int | None, at_s: float) -> None:
        if self.closed:
            return
        self._count += 1
        if self._count <= METRIC_POINTS_MAX:
            self._sink.points(packed_row(name, value, iteration, at_s), 1)
            return
        if self._count == METRIC_POINTS_MAX + 1:
            text = f"metrics: {METRIC_POINTS_MAX:,} points are kept of an attempt, what follows is counted only"
            self._sink.line("warning", text, {}, at_s)
        self._sink.points(b"", 0, 1)

    def artifact(self, name: str, value: Any) -> None:
        if self.closed:
            return
        packed = encode_artifact(value, name, self.step, self._files.writer(self._order))
        sizes = self._artifact_sizes = self._artifact_sizes or {}
        size = len(packed) + len(name)
        together = self._artifact_bytes - sizes.get(name, 0) + size
        check_room(together, name, self.step)
        sizes[name], self._artifact_bytes = size, together
        self._sink.artifact(name, packed)

    def line(self, level: str, text: str, fields: Mapping[str, Any], at_s: float) -> None:
        if not self.closed:
            self._sink.line(level, text[: LINE_CHARS_MAX + 1], fields, at_s)

    def folder(self) -> Path:
        if self._work is None:
            work = Path(self._folder, WORK)
            work.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._work = work
        return self._work


class FrameSink:
    """Sends what an attempt says to its worker, in frames (see `children.frames`).

    Args:
        send: sends a frame; from any thread.
        number: of the attempt.
    """

    def __init__(self, send: Callable[[Mapping[str, Any]], None], number: int) -> None:
        self._send = send
        self._number = number

    def progress(self, fraction: float, message: str, at_s: float) -> None:
        self._send({"frame": "progress", "id": self._number, "fraction": fraction, "message": message, "at": at_s})

    def points(self, rows: bytes, count: int, left_out: int = 0) -> None:
        self._send({"frame": "points", "id": self._number, "rows": rows, "count": count, "left_out": left_out})

    def artifact(self, name: str, packed: bytes) -> None:
        self._send({"frame": "artifact", "id": self._number, "name": name, "value": packed})

    def line(self, level: str, text: str, fields: Mapping[str, Any], at_s: float) -> None:
        text = text.encode(errors="backslashreplace").decode()
        line = {"level": level, "text": text, "fields": dict(fields), "at": at_s}
        self._send({"frame": "line", "id": self._number, **line})
